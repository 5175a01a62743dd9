from pathlib import Path

import pytest
import yaml

from flows.config import ConfigError, RunConfig, load_config
from storage.datasets.folder import FolderSource
from tasks.yaml_files import without_defaults

MINIMAL = {"name": "mine", "store": "store", "source": {"kind": "folder", "path": "pictures"}}


def write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert config.store == str(tmp_path / "store")
    [source] = config.source
    assert isinstance(source, FolderSource)
    assert source.path == str(tmp_path / "pictures")


def test_weight_files_are_relative_to_the_file_too(tmp_path: Path) -> None:
    own, given = (
        {"layers": ["layer2"], "name": "torchvision/resnet18", "weights": path, "weights_sha256": "0" * 64} for path in ("a.pth", "/b.pth")
    )
    config = load_config(
        write(tmp_path, detectors=[{"kind": "padim", "backbone": own}, {"kind": "padim", "backbone": given}, {"kind": "ae"}])
    )
    assert [detector.backbone.weights for detector in config.detectors[:2]] == [str(tmp_path / "a.pth"), "/b.pth"]  # type: ignore[union-attr]


def test_a_typo_is_named_with_the_key_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"detectors\.0\.patchcore\.memory_sise: unknown key; did you mean memory_size\?"):
        load_config(write(tmp_path, detectors=[{"kind": "patchcore", "memory_sise": 3}]))


def test_a_wrong_value_is_named_with_what_came(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"failed_share_max.*\(got 7\)"):
        load_config(write(tmp_path, failed_share_max=7))


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ({"layers": ["blockX"]}, r"detectors\.1\.backbone: efficientnet-lite0 has no layer blockX; it has block2, block4"),
        ({"name": "torchvision/resnet18", "layers": ["layer9"]}, r"torchvision/resnet18 has no layer layer9; it has conv1, bn1"),
        ({"layers": ["block4", "block2"]}, "from shallow to deep: block2, block4"),
        ({"name": "torchvision/resnet18"}, r"detectors\.1\.padim\.backbone: expected `layers`, .* torchvision/resnet18 has conv1, bn1"),
    ],
)
def test_a_layer_that_there_is_not_is_refused_as_the_file_is_read(tmp_path: Path, backbone: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, detectors=[{"kind": "ae"}, {"kind": "padim", "backbone": backbone}]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detectors": [{"kind": "ae", "C0": 0}]}, "detectors.0.ae.C0: Input should be greater than or equal to 1 (got 0)"),
        ({"detectors": []}, "detectors: Tuple should have at least 1 item after validation, not 0 (got [])"),
        ({"detectors": [{"kind": "patchcor"}]}, "detectors.0: there is no kind 'patchcor'; did you mean patchcore?"),
        ({"detectors": [{"memory_size": 4}]}, "detectors.0: expected keys and values, `kind` among them"),
        ({"detectors": ["ae"]}, "detectors.0: expected keys and values, got 'ae'"),
        ({"split": {"train": 0.9}}, "split: train + validation + test must be 1, not 1.3"),
        (
            {"detectors": [{"kind": "padim", "backbone": {"layers": ["block2", "block2"]}}]},
            "detectors.0.padim.backbone: expected different layers, got block2, block2",
        ),
    ],
)
def test_a_refusal_is_one_line_in_words(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(write(tmp_path, **changes))
    assert str(refusal.value) == f"{tmp_path / 'run.yaml'}:\n  {said}"


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(write(tmp_path, failed_share_max=list(range(100))))
    assert len(str(refusal.value)) < len(str(tmp_path)) + 150


def test_no_file_and_no_yaml_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "bad.yaml")


SHIPPED = sorted((Path(__file__).parents[2] / "deploy" / "configs").glob("**/*.yaml"))


@pytest.mark.parametrize("path", [path for path in SHIPPED if "store: " in path.read_text()], ids=lambda path: path.name)
def test_what_differs_from_the_defaults_is_the_whole_configuration(path: Path) -> None:
    config = load_config(path)
    values = without_defaults(config)
    assert RunConfig.model_validate(values) == config
    assert RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(values))) == config
    assert len(str(values)) < len(str(config.model_dump(mode="json"))) / 2


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "deploy" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).detectors
