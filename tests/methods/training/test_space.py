"""Names, values and combinations that a detector has or has not; trials that are the same whenever they are asked for."""

import pytest

from methods.detectors.autoencoder import AutoencoderConfig
from methods.detectors.padim import PaDiMConfig
from methods.detectors.sano import SanoConfig
from methods.training.space import Range, SpaceError, check_alone, check_space, configure, expand_grid
from methods.training.suggestions import suggest

BASE = AutoencoderConfig(input_size_px=32)


def test_a_grid_is_every_combination_the_last_name_fastest() -> None:
    trials = expand_grid(BASE, {"detector.C0": (2, 4), "d": (1, 8, 16)})
    assert [tuple(trial.values()) for trial in trials] == [(2, 1), (2, 8), (2, 16), (4, 1), (4, 8), (4, 16)]
    assert configure(BASE, trials[4]) == AutoencoderConfig(input_size_px=32, C0=4, d=8)


def test_a_dotted_name_reaches_into_a_part_and_leaves_the_rest() -> None:
    base = SanoConfig()
    found = configure(base, {"unet.widths": [64, 128], "unet.attention_levels": [1]})
    assert found.unet.widths == (64, 128)
    assert found.unet.model_copy(update={"widths": base.unet.widths, "attention_levels": base.unet.attention_levels}) == base.unet
    assert base == SanoConfig()


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "space: it is empty"),
        ({"detector.lerning_rate": (1e-3,)}, r"detector.lerning_rate: unknown key 'lerning_rate' of ae; did you mean learning_rate\?"),
        ({"zzz": (1,)}, "space.zzz: unknown key 'zzz' of ae; known are kind, C0"),
        ({"unet.widths": (1,)}, "unknown key 'unet' of ae"),
        ({"d.e": (1,)}, "d of ae is a value and has no parts"),
        ({"kind": ("vae",)}, "varies one detector"),
        ({"d": ()}, "space.d: no value"),
        ({"d": (4, 4)}, "space.d: the same value"),
        ({"d": (4,), "detector.d": (8,)}, "space.d: given twice"),
    ],
)
def test_what_is_no_space_is_refused_by_its_key(space: dict[str, tuple[object, ...]], said: str) -> None:
    with pytest.raises(SpaceError, match=said):
        check_space(BASE, space)


def test_values_that_the_detector_refuses_are_named() -> None:
    with pytest.raises(SpaceError, match=r"ae refuses d = 0: d: Input should be greater"):
        expand_grid(BASE, {"d": (4, 0)})
    with pytest.raises(SpaceError, match=r"refuses learning_rate = 0"):
        check_alone(BASE, {"learning_rate": Range(low=0, high=1.0)})
    with pytest.raises(SpaceError, match="a grid needs a list"):
        expand_grid(BASE, {"d": Range(low=1, high=4)})


def test_layers_that_the_backbone_has_not_are_refused_with_those_that_it_has() -> None:
    base = PaDiMConfig()
    refusal = r"padim refuses backbone.layers = \['blockX'\]: backbone: efficientnet-lite0 has no layer blockX; it has block2, block4"
    for refuse in (expand_grid, check_alone):
        with pytest.raises(SpaceError, match=refusal):
            refuse(base, {"backbone.layers": (["block4"], ["blockX"])})
    both = {"backbone.name": ("efficientnet-lite0", "torchvision/resnet18"), "backbone.layers": (["block4"], ["layer2"])}
    check_alone(base, both)  # each is right beside one of the others
    with pytest.raises(SpaceError, match="efficientnet-lite0 has no layer layer2"):
        expand_grid(base, both)


def test_a_refusal_in_the_detectors_own_words_is_not_called_a_value_error() -> None:
    with pytest.raises(SpaceError, match=r"refuses backbone.layers = \['block2', 'block2'\]: backbone: expected different layers"):
        expand_grid(PaDiMConfig(), {"backbone.layers": (["block2", "block2"],)})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"low": 2, "high": 1}, "low < high"),
        ({"low": 0, "high": 1, "log": True}, "above 0"),
        ({"low": 1, "high": 8, "log": True, "step": 1}, "no step"),
    ],
)
def test_a_range_that_holds_nothing_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Range.model_validate(given)


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_suggestions_are_the_same_each_time_and_lie_in_the_space(method: str) -> None:
    space = {"learning_rate": Range(low=1e-4, high=1e-2, log=True), "d": Range(low=2, high=16, step=2), "weight_decay": (0.0, 1e-5)}
    runs = []
    for _ in range(2):
        suggestions = suggest(BASE, space, method=method, trials=11, batch=3, seed=5)  # type: ignore[arg-type]
        batches = []
        while asked := suggestions.ask():
            batches.append(asked)
            suggestions.tell([None if trial["d"] == 4 else -abs(trial["d"] - 10) for trial in asked])
        runs.append(batches)
    assert runs[0] == runs[1]
    assert [len(batch) for batch in runs[0]] == [3, 3, 3, 2]
    trials = [trial for batch in runs[0] for trial in batch]
    for trial in trials:
        assert 1e-4 <= trial["learning_rate"] <= 1e-2
        assert trial["d"] in range(2, 17, 2)
        assert trial["weight_decay"] in (0.0, 1e-5)
        configure(BASE, trial)
    assert len({trial["learning_rate"] for trial in trials}) == 11


def test_tpe_learns_from_what_it_is_told() -> None:
    space = {"d": Range(low=1, high=1000)}

    def last_ones(sign: int) -> float:
        suggestions, values = suggest(BASE, space, method="tpe", trials=40, batch=2, seed=0), []
        while asked := suggestions.ask():
            values += [trial["d"] for trial in asked]
            suggestions.tell([sign * trial["d"] for trial in asked])
        return sum(values[-10:]) / 10

    assert last_ones(1) > 700
    assert last_ones(-1) < 300
