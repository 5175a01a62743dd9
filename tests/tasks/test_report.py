"""The report on two detectors of one kind: their names, what is shown of them, and the file that runs the same again."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from flows.config import RunConfig, load_config
from methods.detectors.autoencoder import AutoencoderConfig
from methods.detectors.registry import build_detector
from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.manifest import read_manifest, write_manifest
from storage.models import Bundle, write_bundle
from storage.scores import create_store
from tasks import report_pictures
from tasks.evaluate import EvaluationConfig, evaluate_store
from tasks.execution import ExecutionConfig
from tasks.references import EvaluationReference, ManifestReference, ModelReference, StoreReference
from tasks.report import summarise, write_report
from tests.archives import write_archive_pictures, write_manifest_of

ROWS, SIZE = 40, 16
BOOTSTRAP = BootstrapConfig(replicates=50, stratify="none")
LABELS = ["Autoencoder (d 4)", "Autoencoder (d 8)"]
CARD = {
    "trained_on": {"manifest_digest": "a" * 64, "samples": 1234, "abnormal": 0, "subjects": 56},
    "training": {"seed": 7, "curve": [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}], "best_epoch": 2},
    "calibration": {
        "thresholds": {level: {"value": 1.0, "rule": "r", "detail": "d"} for level in ("image", "pixel")},
        "operating_points": [
            {"level": level, "split": "validation", "value": 1.0, "rule": "highest Dice", "detail": "Dice 0.875"}
            for level in ("image", "pixel")
        ],
    },
    "code": {"normascope": "0.0", "fingerprint": "f" * 64},
    "packages": {"torch": "2"},
}


class Run:
    """Forty tested pictures, every fourth abnormal with a mask of its upper half, and two autoencoders with invented scores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = read_manifest(write_manifest_of(write_archive_pictures(folder / "pictures", ROWS, size_px=32))[0])
        mask = np.zeros((32, 32), np.uint8)
        mask[:16] = 255
        Image.fromarray(mask).save(folder / "mask.png")
        self.labels = (np.arange(ROWS) // 2 % 4 == 0).astype(int)
        self.rows["split"], self.rows["label"] = "test", self.labels
        self.rows["subject_id"] = [f"p{number}" for number in range(ROWS)]
        self.rows["finding"] = pd.array(["ring" if label else None for label in self.labels], "string")
        uri, digest = str(folder / "mask.png"), filesystems.sha256_of(str(folder / "mask.png"))
        self.rows["mask_uri"] = pd.array([uri if label else None for label in self.labels], "string")
        self.rows["mask_sha256"] = pd.array([digest if label else None for label in self.labels], "string")
        manifest = str(folder / "manifest.parquet")
        self.manifest = ManifestReference(
            uri=manifest, digest=write_manifest(manifest, self.rows), rows=ROWS, development_uri="", development_digest=""
        )
        self.configs = [AutoencoderConfig(C0=4, d=d, input_size_px=SIZE) for d in (4, 8)]
        self.config = RunConfig.model_validate(
            {"name": "two of a kind", "store": str(folder), "source": {"kind": "folder", "path": str(folder / "pictures")}}
            | {"detectors": [config.model_dump() for config in self.configs], "evaluation": {"bootstrap": BOOTSTRAP.model_dump()}}
        )
        self.scores, self.models, self.stores = [], [], []
        for number, config in enumerate(self.configs):
            self._train(number, config)

    def _train(self, number: int, config: AutoencoderConfig) -> None:
        rng = np.random.default_rng(number)
        with torch.random.fork_rng():
            torch.manual_seed(number)
            tensors = {name: tensor.numpy() for name, tensor in build_detector(config).state_dict().items()}
        uri = str(self.folder / f"model-{number}")
        digest = write_bundle(uri, Bundle(tensors=tensors, config=config.model_dump(mode="json"), card=CARD))
        store = create_store(
            str(self.folder / f"scores-{number}.zarr"),
            rows=ROWS,
            map_size_px=SIZE,
            shard_rows=ROWS,
            attributes={"manifest_digest": self.manifest["digest"], "model_digest": digest},
        )
        image = (rng.normal(size=ROWS) + self.labels).astype(np.float32)
        maps = rng.integers(0, 3, (ROWS, SIZE, SIZE)).astype(np.float16)
        store.write_shard(0, image=image, maps=maps, failures=[])
        self.scores.append(image)
        self.models.append(ModelReference(uri=uri, digest=digest, kind="ae"))
        self.stores.append(StoreReference(uri=store.uri, manifest_digest=self.manifest["digest"], model_digest=digest, kind="ae"))

    def evaluate(self) -> list[EvaluationReference]:
        config = EvaluationConfig(bootstrap=BOOTSTRAP)
        execution = ExecutionConfig(kind="process")
        return [
            evaluate_store.fn(store, self.manifest, model, {}, evaluation=config, execution=execution, root=str(self.folder))
            for store, model in zip(self.stores, self.models, strict=True)
        ]

    def report(self, evaluations: list[EvaluationReference]) -> Path:
        reference = write_report.fn(
            self.config.name,
            self.manifest,
            self.models,
            self.stores,
            evaluations,
            notice=None,
            configuration=self.config.model_dump(mode="json"),
            bootstrap=BOOTSTRAP,
            store=str(self.folder),
        )
        return Path(reference["html_uri"]).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def evaluations(run: Run) -> list[EvaluationReference]:
    return run.evaluate()


@pytest.fixture(scope="module")
def written(run: Run, evaluations: list[EvaluationReference]) -> Path:
    return run.report(evaluations)


@pytest.fixture(scope="module")
def numbers(written: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((written / "metrics.json").read_text())
    return found


def test_two_detectors_of_one_kind_have_names_and_numbers_of_their_own(
    numbers: dict[str, Any], evaluations: list[EvaluationReference]
) -> None:
    assert [one["name"] for one in numbers["detectors"]] == LABELS
    aurocs = [one["metrics"][0]["value"] for one in numbers["detectors"]]
    assert aurocs[0] != aurocs[1]
    assert {(row["first"], row["second"]) for row in numbers["differences"]} == {tuple(LABELS)}
    assert numbers["differences"][0]["metric"]["value"] == pytest.approx(aurocs[0] - aurocs[1])
    markdown = summarise(evaluations, notice=None)
    for label, auroc in zip(LABELS, aurocs, strict=True):
        assert f"| {label} | image | AUROC | {auroc:.3f} |" in markdown


def test_extremes_are_the_four_highest_and_lowest_scores_of_each_class_by_each_detector(run: Run, numbers: dict[str, Any]) -> None:
    for detector, scores in zip(numbers["detectors"], run.scores, strict=True):
        for strip in detector["extremes"]:
            of_class = np.flatnonzero(run.labels == (strip["label"] == "abnormal"))
            wanted = of_class[np.argsort(scores[of_class])][:4] if strip["end"] == "lowest" else of_class[np.argsort(-scores[of_class])][:4]
            assert [one["sample_id"] for one in strip["samples"]] == run.rows["sample_id"].iloc[wanted].tolist()
            np.testing.assert_allclose([one["score"] for one in strip["samples"]], scores[wanted])
        assert [(strip["label"], strip["end"]) for strip in detector["extremes"]] == [
            (label, end) for label in ("abnormal", "normal") for end in ("highest", "lowest")
        ]


def test_the_gallery_shows_reconstructions_maps_and_masks_of_every_detector(run: Run, numbers: dict[str, Any], written: Path) -> None:
    html = (written / "report.html").read_text()
    assert len(numbers["gallery"]) == 16
    first = numbers["detectors"][0]["extremes"][0]["samples"]
    assert [row["sample_id"] for row in numbers["gallery"][:4]] == [one["sample_id"] for one in first]
    for label in LABELS:
        assert html.count(f'alt="what {label} takes ') == html.count(f'alt="anomaly map of {label} for ') == 16
        assert html.count(f'alt="where {label} calls ') == 8  # those with a true mask
    assert html.count('alt="mask of the annotated anomaly"') == 8
    assert len(html) < 2_000_000


def test_reconstructions_stop_when_their_time_is_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run.rows.iloc[:3]
    assert [one.shape for one in report_pictures._reconstruct(run.models[0], rows) if one is not None] == [(SIZE, SIZE, 3)] * 3
    monkeypatch.setattr(report_pictures, "_RECONSTRUCTION_S", -1.0)
    assert report_pictures._reconstruct(run.models[0], rows) == [None] * 3


def test_bands_stand_in_the_files_and_on_the_page(numbers: dict[str, Any], written: Path) -> None:
    for detector in numbers["detectors"]:
        for level in ("image", "pixel"):
            roc, pr = detector["bands"]["roc"][level], detector["bands"]["pr"][level]
            assert (len(roc["false_positive_rate"]), len(pr["recall"])) == (101, 101)
            assert all(low <= high for low, high in zip(roc["low"], roc["high"], strict=True))
    assert "pointwise 95&nbsp;% bands" in (written / "report.html").read_text()


def test_standard_deviations_of_fifty_replicates_stand_on_the_page_and_in_the_files(numbers: dict[str, Any], written: Path) -> None:
    auroc = numbers["detectors"][0]["metrics"][0]
    assert numbers["bootstrap"]["n_resamples"] == 50
    assert f"± {auroc['sd']:.3f}" in (written / "report.html").read_text()
    rows = csv.DictReader((written / "metrics.csv").open())
    assert float(next(row["sd"] for row in rows if row["detector"] == LABELS[0] and row["name"] == "AUROC")) == auroc["sd"]


def test_the_run_can_be_repeated_from_the_file_beside_the_page(run: Run, numbers: dict[str, Any], written: Path) -> None:
    assert load_config(written / "run.yaml") == run.config
    assert numbers["run"]["run.yaml"] == (written / "run.yaml").read_text()
    assert "normascope run run.yaml" in numbers["run"]["to run it again"]
    for label, model in zip(LABELS, run.models, strict=True):
        for text in (model["digest"], "1,234 samples (0 abnormal) of 56 subjects", "a" * 64, "seed 7, epoch 2 of 2 kept", "normascope 0.0"):
            assert text in numbers["run"][label]
    assert run.manifest["digest"] in numbers["run"].values()


def test_of_many_slides_the_tested_ones_are_shown_and_normal_ones_are_among_them() -> None:
    slides = [("train", 0)] * 20 + [("test", 1)] * 30 + [("test", 0)] * 5
    rows = pd.DataFrame(
        {"slide_id": f"s{number:02d}", "excluded": None, "split": split, "label": label} for number, (split, label) in enumerate(slides)
    )
    shown, left_out = report_pictures.choose_slides(rows)
    assert (len(shown), left_out) == (24, 31)
    assert {group["split"].iloc[0] for group in shown} == {"test"}
    assert sum(group["label"].iloc[0] == 0 for group in shown) == 5
    assert [group["slide_id"].iloc[0] for group in shown] == sorted(group["slide_id"].iloc[0] for group in shown)
    assert len(report_pictures.choose_slides(rows.iloc[:3])[0]) == 3
