from pathlib import Path

import pytest
import yaml

from flows.config import ConfigError, load_config
from storage.datasets.folder import FolderSource

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


def test_no_file_and_no_yaml_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "deploy" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).detectors
