"""Two digits in turn normal, one seed, two cheap detectors: the table, what is cached, what is refused."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from flows.benchmark import benchmark, configure, load_benchmark
from flows.config import ConfigError
from storage.datasets.miniatures.one_class import write_svhn
from storage.manifest import read_manifest
from tasks.caching import steps

CONFIGS = sorted((Path(__file__).parents[2] / "deploy" / "configs" / "benchmarks").glob("*.yaml"))

RUN = {
    "name": "digits",
    "store": "store",
    "source": {"kind": "svhn", "path": "svhn", "normal_class": 0},
    "curation": {"quality": {"checks": ["near-constant"]}, "duplicates": None},
    "detectors": [
        {"kind": "ae", "C0": 4, "d": 4, "input_size_px": 16, "epochs": 2},
        {"kind": "ocsvm", "input_size_px": 32, "backbone": {"layers": ["block2"]}},
    ],
    "training": {"threads": 1},
    "execution": {"kind": "process"},
}
PLAN = {"run": "run.yaml", "classes": {"normal_class": [0, 1]}, "seeds": [0], "bootstrap": {"replicates": 40}}


def write(folder: Path, *, plan: dict[str, object] | None = None, run: dict[str, object] | None = None) -> Path:
    if not (folder / "svhn").exists():  # a .mat file tells its time
        write_svhn(folder / "svhn", train=120, test=40)
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN | (run or {})))
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(PLAN | (plan or {})))
    return folder / "benchmark.yaml"


@pytest.mark.usefixtures("prefect_server")
def test_a_benchmark_ends_in_a_table_and_a_longer_one_does_only_what_is_new(tmp_path: Path) -> None:
    before = steps.done.copy()
    reference = benchmark(*load_benchmark(write(tmp_path)))
    done = dict(steps.done - before)
    assert (done["train"], done["score"], done["write benchmark"]) == (4, 4, 1)

    result = json.loads(Path(reference["json_uri"]).read_text())
    assert (result["classes"], result["seeds"]) == (["0", "1"], [0])
    assert [(row["normal"], row["abnormal"]) for row in result["tested"]] == [(4, 36)] * 2
    assert [row["kind"] for row in result["detectors"]] == ["ae", "ocsvm"]
    for row in result["detectors"]:
        found = row["metrics"]["AUROC"]
        assert found["mean"] == pytest.approx(sum(found["by_class"].values()) / 2)
        assert found["low"] <= found["mean"] <= found["high"]
        assert found["sd_over_seeds"] is None
    _check_that_training_was_told_of_no_tested_sample(Path(reference["json_uri"]).parents[2])
    table = pd.read_csv(reference["csv_uri"])
    assert table["metric"].tolist() == ["AUROC", "average precision", "rank by AUROC"] * 2
    assert table.loc[table["metric"] == "rank by AUROC", "mean"].sum() == 3  # of two
    assert "| Autoencoder |" in Path(reference["markdown_uri"]).read_text()

    before = steps.done.copy()
    longer = benchmark(*load_benchmark(write(tmp_path, plan={"seeds": [0, 1]})))
    done = dict(steps.done - before)
    # the first seed is not done again; a table follows each seed, the first of which is there
    assert (done["train"], done["score"], done["write benchmark"]) == (4, 4, 1)
    assert json.loads(Path(longer["json_uri"]).read_text())["detectors"][0]["metrics"]["AUROC"]["sd_over_seeds"] is not None


@pytest.mark.usefixtures("prefect_server")
def test_painted_textures_are_measured_by_the_pixel_too_and_training_stays_unpainted(tmp_path: Path) -> None:
    run = {
        "source": {"kind": "texture", "texture": "grass"},
        "paint": {"share": 0.5, "regions": 1, "findings": ["blur", "pen"]},
        "tiling": {"pictures": "tiled", "size_px": 64},
        "split": {"train": 0.4, "validation": 0.2, "test": 0.4},
    }
    reference = benchmark(*load_benchmark(write(tmp_path, run=run, plan={"classes": {"texture": ["grass"]}})))
    with_maps, without = json.loads(Path(reference["json_uri"]).read_text())["detectors"]
    assert list(with_maps["metrics"]) == ["AUROC", "average precision", "pixel AUROC", "pixel average precision", "rank by AUROC"]
    assert list(without["metrics"]) == ["AUROC", "average precision", "rank by AUROC"]
    markdown = Path(reference["markdown_uri"]).read_text()
    assert markdown.count("| Autoencoder |") == 4
    assert markdown.count("pixel AUROC") == 2
    (manifest,) = map(read_manifest, map(str, (Path(reference["json_uri"]).parents[2] / "manifests").glob("manifest-*")))
    assert not manifest["mask_uri"][manifest["split"] == "train"].notna().any()
    assert manifest["mask_uri"][manifest["split"] == "test"].notna().any()


def _check_that_training_was_told_of_no_tested_sample(store: Path) -> None:
    tested = {path.stem.removeprefix("test-of-"): read_manifest(str(path)) for path in (store / "manifests").glob("test-of-*")}
    wholes = {_digest(path): read_manifest(str(path)) for path in (store / "manifests").glob("manifest-*")}
    assert len(tested) == len(wholes) == 2
    for digest, whole in wholes.items():
        rows = tested[digest[:16]]
        assert rows["sample_id"].tolist() == whole["sample_id"][whole["split"] == "test"].tolist()
        assert not set(rows["sample_id"]) & set(whole["sample_id"][whole["split"].isin(["train", "validation"])])
    cards = [json.loads(path.read_text()) for path in (store / "models").glob("*/card.json")]
    development = {_digest(path) for path in (store / "manifests").glob("development-*")}
    assert {card["trained_on"]["manifest_digest"] for card in cards} == development


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"classes": {"normal_digit": [0]}}, "a benchmark has one source that has this key"),
        ({"classes": {"normal_class": [11]}}, "less than or equal to 9"),
        ({"classes": {"normal_class": [0], "path": ["a"]}}, "expected one key"),
        ({"sedes": [0]}, "sedes"),
        ({"run": "absent.yaml"}, "absent.yaml"),
    ],
)
def test_what_is_no_benchmark_is_refused_by_the_key(tmp_path: Path, plan: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_benchmark(write(tmp_path, plan=plan))


def test_class_and_seed_replace_those_of_the_run(tmp_path: Path) -> None:
    config, _ = load_benchmark(write(tmp_path))
    one = configure(config, key="normal_class", normal=7, seed=5)
    assert one.source[0].normal_class == 7  # type: ignore[union-attr]
    assert (one.split.seed, one.training.seed) == (5, 5)
    assert one.store == config.store


@pytest.mark.parametrize("path", [path for path in CONFIGS if not path.stem.endswith("-run")], ids=lambda path: path.name)
def test_every_benchmark_that_is_shipped_can_be_loaded(path: Path) -> None:
    config, plan = load_benchmark(path)
    assert config.detectors
    assert plan.seeds
