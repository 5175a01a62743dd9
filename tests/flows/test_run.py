"""The whole pipeline on eighteen small pictures, in this process: what is cached, what is redone, what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.config import RunConfig
from flows.run import run
from methods.curation.split_config import SplitConfig
from methods.detectors.autoencoder import AutoencoderConfig
from methods.detectors.patchcore import PatchCoreConfig
from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.metrics import UndefinedMetricError
from storage.datasets.folder import FolderSource
from storage.datasets.source import SourceError
from storage.scores import open_store
from tasks.caching import steps
from tasks.evaluate import EvaluationConfig
from tasks.execution import ExecutionConfig
from tasks.failures import TooManyFailuresError
from tasks.score import ScoringConfig

pytestmark = pytest.mark.usefixtures("prefect_server")

PATCHCORE = PatchCoreConfig(input_size_px=64, memory_size=64, candidates=500)
AE = AutoencoderConfig(C0=4, d=4, input_size_px=32, epochs=2)


def make_config(pictures: Path, *, detectors: tuple[PatchCoreConfig | AutoencoderConfig, ...] = (PATCHCORE,)) -> RunConfig:
    return RunConfig(
        name="test",
        store=str(pictures.parent / "store"),
        source=FolderSource(path=str(pictures)),
        split=SplitConfig(train=0.5, validation=0.2, test=0.3),
        detectors=detectors,
        scoring=ScoringConfig(shard_rows=4, shards_per_task=2),
        evaluation=EvaluationConfig(bootstrap=BootstrapConfig(replicates=50)),
        execution=ExecutionConfig(kind="process"),
    )


def run_counting(config: RunConfig) -> tuple[dict[str, str], dict[str, int]]:
    """The report, and how often each step was done."""
    before = steps.done.copy()
    report = run(config)
    return report, dict(steps.done - before)  # type: ignore[return-value]


def arrays_of(config: RunConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    stores = [open_store(str(path)) for path in sorted((Path(config.store) / "scores").iterdir())]
    return {store.uri: (store.image_scores(), store.read_maps(range(store.rows))) for store in stores}


def test_a_run_ends_in_a_report_and_the_next_one_does_nothing(pictures: Path) -> None:
    config = make_config(pictures, detectors=(PATCHCORE, AE))
    report, done = run_counting(config)
    assert done == {"tabulate": 1, "write manifest": 1, "train": 2, "score": 6, "evaluate": 2, "write report": 1}
    numbers = json.loads(Path(report["json_uri"]).read_text())
    metrics = {(row["level"], row["name"]): row for row in numbers["detectors"][0]["metrics"]}
    assert metrics["image", "AUROC"]["value"] > 0.95
    assert metrics["pixel", "AUROC"]["value"] > 0.8
    assert metrics["pixel", "AUROC"]["low"] <= metrics["pixel", "AUROC"]["value"] <= metrics["pixel", "AUROC"]["high"]
    compared = {(row["metric"]["level"], row["metric"]["name"]): row["metric"] for row in numbers["differences"]}
    values = [{(row["level"], row["name"]): row["value"] for row in detector["metrics"]} for detector in numbers["detectors"]]
    for key in (("image", "AUROC"), ("pixel", "AUPRO"), ("image", "balanced accuracy")):
        assert compared[key]["value"] == pytest.approx(values[0][key] - values[1][key])
    assert {row["answer"] for row in numbers["constants"]} == {"everything normal", "everything abnormal"}
    again, done = run_counting(config)
    assert done == {}
    assert again == report


def test_a_changed_test_picture_costs_its_own_work_only(pictures: Path) -> None:
    config = make_config(pictures)
    run_counting(config)
    before = arrays_of(config)
    tested = _pictures_of(config, "test")[0]
    Image.fromarray(np.asarray(Image.open(tested))[::-1].copy()).save(tested)
    _, done = run_counting(config)
    assert done == {"tabulate": 1, "write manifest": 1, "score": 3, "evaluate": 1, "write report": 1}  # no training
    after = arrays_of(config)
    (new,) = set(after) - set(before)
    (old,) = before
    same = np.flatnonzero(before[old][0] == after[new][0])
    assert len(same) == 17  # copied, to the bit
    np.testing.assert_array_equal(before[old][1][same], after[new][1][same])


def test_a_deleted_output_is_made_again(pictures: Path) -> None:
    config = make_config(pictures)
    report, _ = run_counting(config)
    before = arrays_of(config)
    Path(report["html_uri"]).unlink()
    assert run_counting(config)[1] == {"write report": 1}
    (store,) = (Path(config.store) / "scores").iterdir()
    (store / "anomaly_map" / "c.2.0.0").unlink()
    assert run_counting(config)[1] == {"score": 1}
    for uri, (image, maps) in arrays_of(config).items():
        np.testing.assert_array_equal(image, before[uri][0])
        np.testing.assert_array_equal(maps, before[uri][1])
    (model,) = (Path(config.store) / "models").iterdir()
    (model / "card.json").unlink()
    assert run_counting(config)[1]["train"] == 1


def test_a_picture_that_cannot_be_read_is_counted_and_the_run_goes_on(pictures: Path) -> None:
    Path(_first(pictures)).write_bytes(b"no picture")
    config = make_config(pictures).model_copy(update={"failed_share_max": 0.1})
    report, _ = run_counting(config)
    counts = json.loads(Path(report["json_uri"]).read_text())["counts"]
    assert sum(sum(row["excluded"].values()) for row in counts) == 1


def test_too_many_unreadable_pictures_stop_the_run(pictures: Path) -> None:
    Path(_first(pictures)).write_bytes(b"no picture")
    with pytest.raises(TooManyFailuresError, match="1 of 18 pictures failed"):
        run(make_config(pictures))


def test_a_folder_with_one_class_is_refused_by_the_evaluation(pictures: Path) -> None:
    for path in (pictures / "abnormal").iterdir():
        path.unlink()
    with pytest.raises(UndefinedMetricError, match="0 abnormal"):
        run(make_config(pictures))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no pictures"):
        run(make_config(tmp_path / "empty"))


def test_training_cannot_read_a_row_of_the_test_split(pictures: Path) -> None:
    config = make_config(pictures)
    run(config)
    (development_path,) = (Path(config.store) / "manifests").glob("development-*")
    (manifest_path,) = (Path(config.store) / "manifests").glob("manifest-*")
    development, manifest = pd.read_parquet(development_path), pd.read_parquet(manifest_path)
    (model,) = (Path(config.store) / "models").iterdir()
    trained_on = json.loads((model / "card.json").read_text())["trained_on"]["manifest_digest"]
    assert trained_on == hashlib.sha256(development_path.read_bytes()).hexdigest()
    assert set(development["split"]) == {"train", "validation"}
    assert not set(development["sha256"]) & set(manifest["sha256"][manifest["split"] == "test"])


def _first(pictures: Path) -> str:
    return str(pictures / "normal" / "picture-000.png")


def _pictures_of(config: RunConfig, split: str) -> list[str]:
    (path,) = (Path(config.store) / "manifests").glob("manifest-*")
    manifest = pd.read_parquet(path)
    return manifest["uri"][(manifest["split"] == split) & (manifest["label"] == 0)].tolist()
