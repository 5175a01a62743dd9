"""Subgroups of a small table against metrics on the samples picked by hand."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import count_pixels, count_scores
from tasks.subgroups import assign_cells, measure_subgroups, stratify

N = 60
OPTIONS = {"thresholds": {}, "bootstrap": BootstrapConfig(replicates=20)}


@pytest.fixture
def rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = np.arange(N) % 3 == 0
    table = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(N)],
            "subject_id": [f"p{i // 2}" for i in range(N)],
            "label": pd.array(label.astype(int), "Int8"),
            "finding": np.where(label, np.where(np.arange(N) % 2, "nevus", "melanoma"), None),
            "dataset": "clinic",
            "site": np.where(np.arange(N) < 30, "hand", np.where(np.arange(N) < 55, "foot", None)),
            "skin_tone": None,
            "projection": None,
            "ita_deg": rng.uniform(-40, 70, N),
        }
    )
    table.loc[0, "ita_deg"] = np.nan
    return table


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(1).normal(size=N).astype(np.float32)


def test_a_subgroups_metrics_are_those_of_its_samples_with_n_in_every_cell(rows: pd.DataFrame, scores: np.ndarray) -> None:
    cells = assign_cells(rows)
    labels = rows["label"].to_numpy(int)
    found = measure_subgroups(cells, count_scores(scores, labels, cells.names), None, **OPTIONS)
    assert {row["grouping"] for row in found} == {"site", "skin tone by ITA", "finding"}  # one source and no projection divide nothing
    for row in found:
        if row["grouping"] == "site":
            chosen = (rows["site"] == row["group"]).to_numpy()
        elif row["grouping"] == "finding":
            chosen = ((rows["finding"] == row["group"]) | (rows["label"] == 0)).to_numpy(bool)
        else:
            continue
        assert (row["normal"], row["abnormal"]) == ((labels[chosen] == 0).sum(), (labels[chosen] == 1).sum())
        assert row["subjects"] == rows["subject_id"][chosen].nunique()
        auroc = next(metric["value"] for metric in row["metrics"] if metric["name"] == "AUROC")
        assert auroc == pytest.approx(sklearn.metrics.roc_auc_score(labels[chosen], scores[chosen]), abs=1e-12)
    tones = [row for row in found if row["grouping"] == "skin tone by ITA"]
    assert sum(row["normal"] + row["abnormal"] for row in tones) == N - 1  # of one the angle is not known


def test_pixels_of_a_subgroup_are_those_of_its_samples(rows: pd.DataFrame, scores: np.ndarray) -> None:
    cells, rng = assign_cells(rows), np.random.default_rng(2)
    labels = rows["label"].to_numpy(int)
    masks = (rng.random((N, 4, 4)) < 0.3) & (labels == 1)[:, None, None]
    maps = rng.integers(0, 9, masks.shape).astype(np.float16)
    found = measure_subgroups(cells, count_scores(scores, labels, cells.names), count_pixels(maps, masks, cells.names), **OPTIONS)
    hand = next(row for row in found if row["group"] == "hand")
    auroc = next(metric["value"] for metric in hand["metrics"] if (metric["level"], metric["name"]) == ("pixel", "AUROC"))
    assert auroc == pytest.approx(sklearn.metrics.roc_auc_score(masks[:30].ravel(), maps[:30].ravel().astype(float)), abs=1e-12)


def test_a_subgroup_of_one_class_has_no_number_and_says_why(rows: pd.DataFrame, scores: np.ndarray) -> None:
    rows.loc[rows["site"] == "foot", ["label", "finding"]] = [0, None]
    cells = assign_cells(rows)
    found = measure_subgroups(cells, count_scores(scores, rows["label"].to_numpy(int), cells.names), None, **OPTIONS)
    foot = next(row for row in found if row["group"] == "foot")
    assert (foot["metrics"], foot["normal"], foot["abnormal"]) == ([], 25, 0)
    assert foot["note"].startswith("the metric is undefined without abnormal items (")


def test_strata_are_of_subjects_and_join_what_a_subject_has_several_of(rows: pd.DataFrame) -> None:
    assert stratify(rows, BootstrapConfig()) is None
    assert set(stratify(rows, BootstrapConfig(stratify="none")).values()) == {"all"}  # type: ignore[union-attr]
    assert stratify(rows, BootstrapConfig(stratify="site"))["p27"] == "foot+none"  # type: ignore[index]
