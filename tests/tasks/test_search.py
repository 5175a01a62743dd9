"""Folds that hold no group twice, no anomaly and no row of the test split; draws and plans that cannot be met."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from methods.detectors.interface import DetectorError
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.padim import PaDiMConfig
from methods.detectors.simclr import SimCLRConfig
from storage.manifest import read_manifest, write_manifest
from tasks.execution import ExecutionConfig
from tasks.search import (
    AnomaliesConfig,
    Folds,
    SearchError,
    StudyConfig,
    Trial,
    anomaly_types,
    check_detector,
    check_study,
    check_trials,
    deal_folds,
    describe_failed,
    draw_few,
)
from tasks.search_fold import Part
from tasks.search_trials import count_slots, trial_training
from tasks.training import TrainingConfig


def rows(*, normal_groups: int = 6, each: int = 4, abnormal: int = 6) -> pd.DataFrame:
    """Normal groups of `each` samples, then abnormal ones of two findings, the first of which are of the first group."""
    n = normal_groups * each + abnormal
    group = [f"g{i // each}" for i in range(normal_groups * each)] + ["g0" if i < 2 else f"a{i}" for i in range(abnormal)]
    is_abnormal = np.arange(n) >= normal_groups * each
    return pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(n)],
            "uri": [f"/nowhere/{i}.png" for i in range(n)],
            "dataset": "d",
            "subject_id": group,
            "group_id": group,
            "label": is_abnormal.astype(int),
            "finding": [("mole" if i % 2 else "burn") if is_abnormal[i] else None for i in range(n)],
            "split": np.where(is_abnormal | (np.array(group) == "g0"), "validation", "train"),
            **dict.fromkeys(("level", "x_px", "y_px"), 0),
            **dict.fromkeys(("width_px", "height_px"), 8),
        }
    )


def deal(table: pd.DataFrame, folder: Path, *, folds: int = 3, seed: int = 0) -> Folds:
    uri = str(folder / "development.parquet")
    digest = write_manifest(uri, table)
    return deal_folds.fn(Part(uri=uri, digest=digest), folds=folds, seed=seed, store=str(folder))  # type: ignore[no-any-return]


def read(part: Part) -> pd.DataFrame:
    return read_manifest(part["uri"], digest=part["digest"])


def test_no_group_is_in_two_folds_and_each_sample_is_validated_once(tmp_path: Path) -> None:
    dealt = deal(rows(), tmp_path)
    validated = []
    for part in dealt["folds"]:
        fold = read(part)
        assert (fold["label"] == 0).all()
        train, validation = fold[fold["split"] == "train"], fold[fold["split"] == "validation"]
        assert not set(train["group_id"]) & set(validation["group_id"])
        assert len(train)
        validated += validation["sample_id"].tolist()
    assert sorted(validated) == sorted(f"s{i}" for i in range(24))
    assert read(dealt["anomalies"])["label"].eq(1).all()
    assert len(read(dealt["anomalies"])) == 6
    assert read(dealt["normal"])["sample_id"].tolist() == [f"s{i}" for i in range(24)]


def test_a_group_with_an_anomaly_is_validated_on_and_never_trained_on(tmp_path: Path) -> None:
    for part in deal(rows(), tmp_path)["folds"]:
        fold = read(part)
        assert "g0" not in set(fold["group_id"][fold["split"] == "train"])


def test_the_seed_deals_the_folds(tmp_path: Path) -> None:
    digests = [[part["digest"] for part in deal(rows(normal_groups=12), tmp_path, seed=seed)["folds"]] for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_a_manifest_with_the_test_split_is_refused(tmp_path: Path) -> None:
    table = rows()
    table.loc[[0, 25], "split"] = "test"
    with pytest.raises(SearchError, match="2 rows of the test split"):
        deal(table, tmp_path)


def test_fewer_groups_than_folds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"fewer groups than folds: 2 group\(s\) of normal samples without anomaly, 3 folds"):
        deal(rows(normal_groups=3), tmp_path)
    with pytest.raises(SearchError, match="a fold of 1 normal sample"):
        deal(rows(normal_groups=4, each=1), tmp_path)


def test_without_anomalies_in_validation_there_is_nothing_to_choose_by(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="no anomaly to choose by"):
        deal(rows(abnormal=0), tmp_path)


def test_few_anomalies_are_of_the_findings_that_are_named(tmp_path: Path) -> None:
    kinds = anomaly_types(deal(rows(abnormal=12), tmp_path)["anomalies"], by="finding")
    drawn = draw_few(kinds, AnomaliesConfig(count=5, findings=("mole",)))
    assert set(kinds[drawn.positions]) == {"mole"}
    assert len(set(drawn.positions.tolist())) == 5
    both = draw_few(kinds, AnomaliesConfig(count=6, types=2))
    assert sorted(kinds[both.positions].tolist()) == ["burn"] * 3 + ["mole"] * 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"count": 4, "findings": ["wart"]}, r"anomalies \(finding\): no anomaly of type 'wart'; there are 6 of 'burn', 6 of 'mole'"),
        ({"count": 7, "findings": ["mole"]}, "7 anomalies are asked for, and there are 6 of 'mole'"),
        ({"count": 3, "types": 3}, r"need 3 with 1 each, and there are 6 of 'burn', 6 of 'mole'"),
    ],
)
def test_anomalies_that_there_are_not_are_refused(config: dict[str, object], said: str) -> None:
    with pytest.raises(SearchError, match=said):
        draw_few(np.array(["burn", "mole"] * 6), AnomaliesConfig.model_validate(config))


def test_a_study_that_asks_for_too_much_is_refused_before_anything_is_trained() -> None:
    kinds = np.array(["burn", "mole"] * 6)
    check_study(kinds, StudyConfig(counts=(3, 6), types=(1, 2)))
    with pytest.raises(SearchError, match=r"study: 7 anomalies of 1 type\(s\)"):
        check_study(kinds, StudyConfig(counts=(3, 7), types=(1,)))


def test_a_detector_that_learns_from_labels_is_refused() -> None:
    with pytest.raises(SearchError, match="learns from labels"):
        check_detector(SimCLRConfig())


def test_a_detector_that_cannot_be_built_is_refused_without_looking_for_its_weights() -> None:
    lost = {"weights": "/lost.pth", "weights_sha256": "0" * 64}
    check_detector(PaDiMConfig(backbone=BackboneConfig(layers=("block2",), **lost)))
    with pytest.raises(DetectorError, match="has no layer blockX"):
        check_detector(PaDiMConfig(backbone=BackboneConfig(layers=("blockX",), **lost)))


def test_failed_trials_are_counted_and_each_reason_is_said_once() -> None:
    def trials(*reasons: str | None) -> list[Trial]:
        return [Trial(number=number, values={}, detector={}, folds=[], failed=reason) for number, reason in enumerate(reasons)]

    assert describe_failed(trials(None, None)) is None
    assert describe_failed(trials(None, "it broke")) == "1 of 2 trials failed: trial 1: it broke"
    assert describe_failed(trials("a", None, "b", "a")) == "3 of 4 trials failed: trials 0, 3: a; trial 2: b"
    check_trials(trials("a", None))
    with pytest.raises(SearchError, match="nothing to choose from: 2 of 2 trials failed: trials 0, 1: a"):
        check_trials(trials("a", "a"))


def test_trials_learn_on_one_thread_in_one_process_and_see_no_anomaly() -> None:
    training = trial_training(TrainingConfig(processes=4, selection="auroc", patience=3), ExecutionConfig(threads=2))
    assert (training.processes, training.threads, training.selection, training.patience) == (1, 2, "loss", 3)
    assert count_slots(ExecutionConfig(kind="local", workers=5)) == 5
    assert count_slots(ExecutionConfig(kind="process")) == 1
