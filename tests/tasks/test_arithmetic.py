"""How the arithmetic of a store is chosen: decisions on measured times and scores that are made up, and the levers on a CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.arithmetic import TOLERANCE, Arithmetic, Scorer, Trial, agree, choose_arithmetic, search_batch_size, search_levers
from tasks.models import load_detector
from tests.archives import write_small_bundle

EXACT = np.random.default_rng(0).normal(size=64)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({4: 1.0, 8: 0.98, 16: 0.97}, 4),  # not worth it
        ({4: 1.0, 8: 0.8, 16: 0.7, 32: 0.69, 64: 0.69}, 16),
        ({4: 1.0, 8: 0.8, 16: 0.9}, 8),  # slower again: larger ones are not tried
        ({4: 1.0, 8: 0.8}, 8),  # memory is short from 16 on
        ({2: 1.0}, 2),  # and already at the first
        ({}, 1),
    ],
)
def test_the_smallest_batch_is_taken_that_no_larger_one_beats(seconds: dict[int, float], chosen: int) -> None:
    def measure(arithmetic: Arithmetic) -> Trial | None:
        return Trial(seconds[arithmetic.batch_size], EXACT) if arithmetic.batch_size in seconds else None

    assert search_batch_size(Arithmetic(batch_size=4), measure).batch_size == chosen


def test_a_lever_is_taken_when_it_pays_and_scores_agree() -> None:
    spread = EXACT.std()

    def measure(arithmetic: Arithmetic) -> Trial | None:
        seconds = {"float32": 1.0, "tf32": 0.6, "bfloat16": 0.4}[arithmetic.precision]
        off = {"float32": 0.0, "tf32": 0.5, "bfloat16": 2.0}[arithmetic.precision] * TOLERANCE * spread
        if arithmetic.compiled:
            return None  # it does not compile
        return Trial(seconds * (0.99 if arithmetic.channels_last else 1.0), EXACT + off)

    first = Arithmetic(batch_size=64, device="cuda")
    assert search_levers(first, measure) == first.model_copy(update={"precision": "tf32"})


def test_all_levers_are_taken_together_when_each_pays() -> None:
    def measure(arithmetic: Arithmetic) -> Trial:
        gains = [arithmetic.channels_last, arithmetic.precision != "float32", arithmetic.precision == "bfloat16", arithmetic.compiled]
        return Trial(0.8 ** sum(gains), EXACT)

    chosen = search_levers(Arithmetic(batch_size=64, device="cuda"), measure)
    assert chosen == Arithmetic(batch_size=64, device="cuda", precision="bfloat16", channels_last=True, compiled=True)


def test_scores_agree_within_the_tolerance_of_their_spread_only() -> None:
    assert agree(EXACT + 0.9 * TOLERANCE * EXACT.std(), EXACT)
    assert not agree(EXACT + 1.1 * TOLERANCE * EXACT.std(), EXACT)
    assert not agree(np.ones(4), np.ones(4))
    assert not agree(np.full(64, np.nan), EXACT)


def test_on_a_cpu_scores_stay_those_of_the_detector_and_maps_are_numpys_halves(tmp_path: Path) -> None:
    model = write_small_bundle(tmp_path)
    detector = load_detector(model)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    scorer = Scorer(load_detector(model), Arithmetic(batch_size=4))
    image, maps = scorer.score(scorer.to_device(pixels))
    with torch.inference_mode():
        plain = detector.score(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_array_equal(image, plain.image.numpy())
    assert plain.pixel is not None
    np.testing.assert_array_equal(maps, plain.pixel.numpy().astype(np.float16), strict=True)


def test_a_bundle_is_tried_here_and_its_scores_in_other_precision_and_layout_are_nearly_those_of_float32(tmp_path: Path) -> None:
    model = write_small_bundle(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    chosen = choose_arithmetic(model, pixels, threads=1)
    expected = Arithmetic(batch_size=chosen.batch_size, device="cuda" if torch.cuda.is_available() else "cpu")
    assert chosen.batch_size >= load_detector(model).batch_size
    assert chosen == expected or chosen.device == "cuda"
    images = []
    for arithmetic in (Arithmetic(batch_size=6), Arithmetic(batch_size=6, precision="bfloat16", channels_last=True)):
        scorer = Scorer(load_detector(model), arithmetic)
        image, maps = scorer.score(scorer.to_device(pixels))
        assert image.dtype == np.float32
        assert maps is not None
        assert maps.dtype == np.float16
        images.append(image)
    np.testing.assert_allclose(images[0], images[1], rtol=0.02)
    assert not np.array_equal(images[0], images[1])
