"""Tables of papers from given evaluations: which number goes where, what is said where there is none, what a plan may not say."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from methods.detectors.registry import DetectorConfig
from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.manifest import read_manifest, write_manifest
from storage.scores import create_store
from tasks import reproduce_cells
from tasks.execution import ExecutionConfig
from tasks.references import EvaluationReference, ManifestReference, ModelReference, StoreReference
from tasks.reproduce import PaperError, PaperPlan, View, check_data, find_detector, find_views, read_number
from tasks.reproduce_cells import Cell, Experiment, NotMeasuredError, measure_view
from tasks.reproduce_table import ReproductionReference, write_reproduction
from tests.archives import write_archive_pictures, write_manifest_of

_DETECTORS: TypeAdapter[tuple[DetectorConfig, ...]] = TypeAdapter(tuple[DetectorConfig, ...])
DETECTORS = _DETECTORS.validate_python([{"kind": "vae"}, {"kind": "vae", "score": "iwae"}, {"kind": "ae"}, {"kind": "dpa"}])
ROWS = 24

PLAN: dict[str, Any] = {
    "paper": "some",
    "title": "Some <b>paper</b>",
    "citation": "Somebody 2020",
    "data": {"moles": {"what": "moles", "where": "https://example.org"}},
    "runs": {"moles": {"config": "moles.yaml", "seeds": [0, 1], "samples": {"train normal": "250"}}},
    "tables": [
        {
            "title": "AUROC",
            "where": "Table 1",
            "settings": ["paper, left", "paper, right"],
            "columns": [
                {"name": "MEL", "metric": "AUROC", "run": "moles", "finding": "MEL"},
                {"name": "all", "metric": "AUROC", "run": "moles"},
            ],
            "rows": [
                {"name": "VAE", "detector": {"kind": "vae", "score": "vae"}, "published": ["0.872", ["0.779", "0.8 ± 0.1"]]},
                {"name": "IWAE", "detector": {"kind": "vae", "score": "iwae"}, "published": ["0.864", "0.771"]},
                {"name": "AE", "detector": {"kind": "ae"}},
                {"name": "constant", "constant": "everything normal"},
                {"name": "GAN", "missing": "not ours", "published": ["0.5", None]},
            ],
        }
    ],
    "differences": ["other | pictures"],
}


def plan(**changes: Any) -> PaperPlan:
    return PaperPlan.model_validate(PLAN | changes)


def table(**changes: Any) -> dict[str, Any]:
    return {"tables": [PLAN["tables"][0] | changes]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tabels": []}, "Extra inputs"),
        ({"runs": {"other": {"config": "o.yaml"}}}, "expected a run of other at the row or the column, got moles"),
        (table(rows=[{"name": "VAE", "detector": {"kind": "vae"}, "published": ["0.8"]}]), "1 published values for 2 columns"),
        (table(settings=["paper"]), "2 values in a cell, and settings names 1"),
        (table(rows=[{"name": "VAE"}]), "expected one of detector, constant and missing"),
        (table(rows=[{"name": "VAE", "constant": "nothing"}]), "constant is one of everything normal"),
        (table(columns=[{"name": "a", "metric": "AUROC", "run": "moles", "samples": "abnormal"}]), "needs level: pixel"),
        (
            table(columns=[{"name": "a", "metric": "AUROC", "run": "moles", "normal": "cat"}], rows=[PLAN["tables"][0]["rows"][3]]),
            "no class cat",
        ),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        plan(**changes)


def test_a_row_names_exactly_one_detector_by_its_values() -> None:
    assert find_detector(DETECTORS, {"kind": "vae", "score": "iwae"}) == 1
    assert find_detector(DETECTORS, {"kind": "dpa", "growing": None, "backbone": {"layers": ["block4"]}}) == 3
    with pytest.raises(PaperError, match="found 2"):
        find_detector(DETECTORS, {"kind": "vae"})
    with pytest.raises(PaperError, match="found 0"):
        find_detector(DETECTORS, {"kind": "dpa", "growing": {}})


def test_a_number_is_read_from_what_is_printed() -> None:
    assert [read_number(text) for text in ("0.944 ± 0.002", "94.05%", "52.4±11.1", "−0.5", "6,626 pictures", "–", None)] == [
        *(0.944, 94.05, 52.4, -0.5, 6.0, None, None)
    ]


def test_missing_data_say_what_to_get_where_to_put_it_and_that_a_miniature_needs_none(tmp_path: Path) -> None:
    with pytest.raises(PaperError, match=r"/moles: moles; from https://example.org\n.*--data.*some --miniature` needs none"):
        check_data(plan(), str(tmp_path))
    (tmp_path / "moles").mkdir()
    check_data(plan(), str(tmp_path))


def test_views_are_what_columns_ask_beside_the_evaluation() -> None:
    columns = [
        {"name": name, "level": "pixel", "metric": "Dice", "run": "moles", "samples": samples}
        for name, samples in (("all", "all"), ("abnormal", "abnormal"))
    ]
    rows = [{"name": "AE", "detector": {"kind": "ae"}}, {"name": "AE at 3", "detector": {"kind": "ae"}, "at": "standard deviations"}]
    views = find_views(plan(**table(columns=columns, rows=rows)), "moles", DETECTORS)
    assert [view.key for view in views[2]] == [
        "pixel, abnormal samples, at the preferred threshold",
        "pixel, all samples, at standard deviations",
        "pixel, abnormal samples, at standard deviations",
    ]
    assert views[0] == views[1] == views[3] == []


class Scored:
    """A manifest of tested samples, two a subject, every third subject abnormal; stores and evaluations of given scores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = read_manifest(write_manifest_of(write_archive_pictures(folder / "pictures", ROWS, size_px=16))[0])
        rows["split"], rows["label"] = "test", (np.arange(ROWS) // 2 % 3 == 0).astype(int)
        rows["finding"] = pd.array([None if label == 0 else ("MEL", "BCC")[i // 6 % 2] for i, label in enumerate(rows["label"])], "string")
        self.rows, uri = rows, str(folder / "manifest.parquet")
        self.tested = ManifestReference(uri=uri, digest=write_manifest(uri, rows), rows=ROWS, development_uri="", development_digest="")

    def cell(self, name: str, seed: int, value: float) -> Cell:
        """A detector with AUROC `value` of all and half of it against MEL, and some scores."""
        scores = np.random.default_rng(seed).normal(size=ROWS).astype(np.float32) + self.rows["label"].to_numpy(np.float32)
        store = create_store(
            str(self.folder / f"{name}-{seed}.zarr"),
            rows=ROWS,
            map_size_px=None,
            shard_rows=ROWS,
            attributes={"manifest_digest": self.tested["digest"], "model_digest": name},
        )
        store.write_shard(0, image=scores, maps=None, failures=[])
        row = {"level": "image", "name": "AUROC", "low": value - 0.1, "high": value + 0.1, "sd": 0.05}
        result = {
            "metrics": [row | {"value": value}],
            "subgroups": [{"grouping": "finding", "group": "MEL", "note": "", "metrics": [row | {"value": value / 2}]}],
            "constant": {"everything normal": [{"level": "image", "name": "AUROC", "value": 0.5}]},
        }
        uri = str(self.folder / f"{name}-{seed}.json")
        filesystems.write_json(uri, result)
        return Cell(
            model=ModelReference(uri="m", digest=name, kind="vae"),
            store=StoreReference(uri=store.uri, manifest_digest=self.tested["digest"], model_digest=name, kind="vae"),
            evaluation=EvaluationReference(uri=uri, kind="vae", digest=uri),
            views={},
            failed=None,
        )

    def experiment(self, seed: int) -> Experiment:
        failed = Cell(model=None, store=None, evaluation=None, views={}, failed="TrainingError: <i>the loss is nan</i>")
        cells = [self.cell("vae", seed, 0.8 + 0.1 * seed), self.cell("iwae", seed, 0.7), failed, failed]
        return Experiment(
            **{"run": "moles", "title": f"moles - seed {seed}", "normal": None, "seed": seed, "manifest": self.tested},
            **{"tested": self.tested, "cells": cells, "report": None, "failed": None},  # type: ignore[typeddict-item]
        )

    def write(self, *, generated: bool = False) -> ReproductionReference:
        reference: ReproductionReference = write_reproduction.fn(
            "Some <b>paper</b>",
            plan(),
            [self.experiment(0), self.experiment(1)],
            detectors={"moles": DETECTORS},
            bootstraps={"moles": BootstrapConfig(replicates=30)},
            generated=generated,
            notice="drawn" if generated else None,
            store=str(self.folder / "store"),
        )
        return reference


def test_ours_is_the_mean_over_seeds_with_an_interval_and_a_failed_cell_says_why(tmp_path: Path) -> None:
    reference = Scored(tmp_path).write()
    found = json.loads(Path(reference["json_uri"]).read_text())
    rows = {row["name"]: row["cells"] for row in found["tables"][0]["rows"]}
    mel, every = rows["VAE"]
    assert (mel["value"], every["value"]) == (pytest.approx(0.425), pytest.approx(0.85))
    assert every["deviation"] == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert every["low"] < every["high"]  # of the scores, which are not those of the value here
    assert every["published"] == ["0.779", "0.8 ± 0.1"]
    assert every["published_values"] == [0.779, 0.8]
    assert mel["published"] == ["0.872", None]
    assert rows["constant"][1]["value"] == 0.5
    assert (rows["GAN"][0]["note"], rows["GAN"][0]["failed"]) == ("not ours", False)
    assert rows["AE"][0]["failed"]
    assert reference["failed"] == ["AE: TrainingError: <i>the loss is nan</i>"]
    assert {(row["samples"], row["published"], row["ours"]) for row in found["samples"]} == {
        ("train normal", "250", None),
        ("test normal", None, 16),
        ("test abnormal", None, 8),
    }
    with Path(reference["csv_uri"]).open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * 2 * 2
    assert {line["data"] for line in lines} == {"real"}


def test_names_are_text_in_every_file_and_generated_data_are_said_to_be(tmp_path: Path) -> None:
    reference = Scored(tmp_path).write(generated=True)
    html, markdown = Path(reference["html_uri"]).read_text(), Path(reference["markdown_uri"]).read_text()
    assert "<b>" not in html
    assert "<i>" not in html
    assert "<i>" not in markdown.replace("\\<", "")
    assert "other \\| pictures" in markdown
    assert "GENERATED" in reference["html_uri"]
    assert all("GENERATED" in Path(reference[kind]).read_text() for kind in ("html_uri", "csv_uri", "markdown_uri"))  # type: ignore[literal-required]
    assert json.loads(Path(reference["json_uri"]).read_text())["generated"] is True


def test_a_view_measures_abnormal_samples_alone_at_the_asked_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = Scored(tmp_path)
    mask = np.zeros((16, 16), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    abnormal = scored.rows["label"] == 1
    scored.rows["mask_uri"] = pd.array([str(tmp_path / "mask.png") if each else None for each in abnormal], "string")
    scored.rows["mask_sha256"] = pd.array(
        [filesystems.sha256_of(str(tmp_path / "mask.png")) if each else None for each in abnormal], "string"
    )
    tested = {**scored.tested, "digest": write_manifest(scored.tested["uri"], scored.rows)}
    attributes = {"manifest_digest": tested["digest"], "model_digest": "m"}
    store = create_store(str(tmp_path / "maps.zarr"), rows=ROWS, map_size_px=16, shard_rows=ROWS, attributes=attributes)
    maps = np.random.default_rng(0).integers(0, 9, (ROWS, 16, 16)).astype(np.float16)
    store.write_shard(0, image=np.arange(ROWS, dtype=np.float32), maps=maps, failures=[])
    points = [
        {"level": "pixel", "value": value, "rule": rule, "detail": ""}
        for value, rule in ((2.0, "highest Dice"), (5.0, "3 standard deviations"))
    ]
    monkeypatch.setattr(reproduce_cells, "read_card", lambda *_, **__: {"calibration": {"operating_points": points}})

    def measure(at: str | None) -> dict[str, float]:
        reference = measure_view.fn(
            StoreReference(uri=store.uri, manifest_digest=tested["digest"], model_digest="m", kind="ae"),
            tested,
            ModelReference(uri="", digest="m", kind="ae"),
            view=View(level="pixel", samples="abnormal", at=at),
            bootstrap=BootstrapConfig(replicates=10, stratify="none"),
            execution=ExecutionConfig(kind="process"),
            root=str(tmp_path),
        )
        return {row["name"]: row["value"] for row in filesystems.read_json(reference["uri"])}

    truth = np.zeros((int(abnormal.sum()), 16, 16), bool)
    truth[:, :4] = True
    for at, threshold in ((None, 2), ("standard deviations", 5)):
        called = maps[abnormal.to_numpy()] >= threshold
        assert measure(at)["IoU"] == pytest.approx((called & truth).sum() / (called | truth).sum())
    with pytest.raises(NotMeasuredError, match="no pixel threshold by 'conformal'"):
        measure("conformal")
