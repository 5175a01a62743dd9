"""The decision on a challenger: by evidence only, on test samples that neither model has seen."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import count_scores
from storage import filesystems
from storage.archives import append_manifest
from storage.champions import Champion
from storage.manifest import read_manifest, write_named
from storage.models import Bundle, write_bundle
from tasks.evaluate import _encode_values, _resampled_uri
from tasks.measures import measure
from tasks.references import EvaluationReference, ManifestReference, ModelReference
from tasks.retrain import PromotionConfig, RetrainError, check_challenger, check_champion, gather_archive, hold_out, read_memory
from tasks.retrain_decision import compare, decide, first_metric
from tests.archives import write_archive_pictures, write_manifest_of

SUBJECTS = 60
LABELS = np.repeat([0, 1], SUBJECTS)
LUCK = np.random.default_rng(0).normal(size=2 * SUBJECTS)


def evaluation(
    folder: Path, name: str, scores: np.ndarray, *, paired_by: str = "the same", subjects: int = SUBJECTS
) -> EvaluationReference:
    """What `evaluate_store` leaves of image scores, two subjects a picture of each class."""
    names = np.arange(2 * SUBJECTS) % subjects + LABELS * subjects
    measured = measure(count_scores(scores, LABELS, names), None, thresholds={}, bootstrap=BootstrapConfig(replicates=200))
    uri = str(folder / f"{name}.json")
    filesystems.write_json(uri, {"metrics": measured.rows, "paired_by": paired_by})
    filesystems.write_bytes(_resampled_uri(uri), _encode_values(measured))
    return EvaluationReference(uri=uri, kind="ae", digest=name)


def promoted(challenger: EvaluationReference, champion: EvaluationReference | None, promotion: PromotionConfig) -> bool:
    metric = first_metric(promotion) if champion is None else promotion.metric
    return decide(compare(challenger, champion, metric=metric, coverage=0.95), promotion).promote


def test_only_a_difference_beyond_doubt_promotes_a_challenger(tmp_path: Path) -> None:
    good, fair = (evaluation(tmp_path, f"at {shift}", LUCK + shift * LABELS) for shift in (3, 1))
    twin = evaluation(tmp_path, "twin", LUCK + 3 * LABELS)
    better, refresh = PromotionConfig(), PromotionConfig(rule="not worse", margin=0.02)
    assert promoted(good, fair, better)
    assert not promoted(fair, good, better)
    assert not promoted(twin, good, better)  # equal models
    assert promoted(twin, good, refresh)
    assert not promoted(fair, good, refresh)
    assert not promoted(good, fair, PromotionConfig(margin=0.5))  # better, but not by so much


def test_the_first_one_has_to_beat_chance_beyond_doubt(tmp_path: Path) -> None:
    promotion = PromotionConfig(metric="image/sensitivity at 90% specificity")
    assert promoted(evaluation(tmp_path, "fair", LUCK + LABELS), None, promotion)
    assert not promoted(evaluation(tmp_path, "luck", LUCK), None, promotion)
    alone = evaluation(tmp_path, "alone", LUCK + 3 * LABELS, subjects=1)
    verdict = decide(compare(alone, None, metric="image/AUROC", coverage=0.95), promotion)
    assert not verdict.promote
    assert "has no interval" in verdict.reason


def test_what_is_not_paired_is_refused_and_a_metric_that_lacks_is_named(tmp_path: Path) -> None:
    ours, theirs = evaluation(tmp_path, "ours", LUCK), evaluation(tmp_path, "theirs", LUCK, paired_by="others")
    with pytest.raises(RetrainError, match="measured on other test samples"):
        compare(ours, theirs, metric="image/AUROC", coverage=0.95)
    with pytest.raises(RetrainError, match="the challenger has no pixel/AUPRO, which decides; it has image/AUROC"):
        compare(ours, ours, metric="pixel/AUPRO", coverage=0.95)


def test_a_rule_that_cannot_decide_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match="needs a margin above 0"):
        PromotionConfig(rule="not worse")
    with pytest.raises(ValidationError, match="lower is better"):
        PromotionConfig(metric="image/Brier score")


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """Twelve pictures of six subjects, four of each in train, validation and test."""
    table = read_manifest(write_manifest_of(write_archive_pictures(tmp_path / "pictures", 12))[0])
    return table.assign(split=np.repeat(["train", "validation", "test"], 4), dataset="clinic")


def write(folder: Path, rows: pd.DataFrame) -> ManifestReference:
    development = rows["split"].isin(["train", "validation"]).to_numpy(bool)
    written = write_named(str(folder / "manifests"), rows, manifest=slice(None), development=development)
    (uri, digest), (development_uri, development_digest) = written["manifest"], written["development"]
    return ManifestReference(uri=uri, digest=digest, rows=len(rows), development_uri=development_uri, development_digest=development_digest)


def train(folder: Path, manifest: ManifestReference) -> Champion:
    card = {"trained_on": {"manifest_digest": manifest["development_digest"]}}
    uri = str(folder / "models" / manifest["digest"][:8])
    digest = write_bundle(uri, Bundle(tensors={}, config={"kind": "ae"}, card=card))
    return Champion(uri=uri, digest=digest, kind="ae", manifest=dict(manifest), by="evidence", evidence={})


def test_a_champion_that_has_seen_the_test_set_is_refused_by_sample_by_subject_and_by_group(tmp_path: Path, rows: pd.DataFrame) -> None:
    champion = train(tmp_path, write(tmp_path, rows))
    check_champion(champion, write(tmp_path, rows))
    (tested,) = rows.index[rows["split"] == "test"][:1]
    dealt_anew = rows.assign(split=["test", "test", *rows["split"][2:]])
    same_person = rows.assign(subject_id=rows["subject_id"].where(rows.index != tested, rows["subject_id"][0]))
    same_group = rows.assign(group_id=rows["group_id"].where(rows.index != tested, rows["group_id"][0]))
    for grown, kind in ((dealt_anew, "subject"), (same_person, "subject"), (same_group, "group")):
        with pytest.raises(RetrainError, match=f"was trained on samples of the frozen test set: .*{kind}"):
            check_champion(champion, write(tmp_path, grown))


def test_a_challenger_of_other_data_than_the_champions_test_is_refused(tmp_path: Path, rows: pd.DataFrame) -> None:
    champion = train(tmp_path, write(tmp_path, rows))
    swapped = write(tmp_path, rows.assign(split=rows["split"].where(rows["split"] != "test", "train"))[4:])
    with pytest.raises(RetrainError, match="the challenger is trained on samples of the champion's test set"):
        check_champion(champion, swapped)
    model = ModelReference(uri=champion.uri, digest=champion.digest, kind="ae")
    check_challenger(model, write(tmp_path, rows))
    with pytest.raises(RetrainError, match="compare models of one division of the data"):
        check_challenger(model, swapped)
    with pytest.raises(RetrainError, match="its card says"):
        check_champion(champion.model_copy(update={"manifest": dict(swapped)}), swapped)
    Path(champion.manifest["uri"]).unlink()
    with pytest.raises(RetrainError, match="cannot be read, and so not whether it has seen the test set"):
        check_champion(champion, swapped)


def test_held_out_samples_are_the_labelled_ones_of_validation_and_test(tmp_path: Path, rows: pd.DataFrame) -> None:
    manifest = write(tmp_path, rows.assign(label=rows["label"].where(rows.index != 11)))
    held_out = hold_out(manifest, store=str(tmp_path))
    assert read_manifest(held_out["uri"])["sample_id"].tolist() == rows["sample_id"][4:11].tolist()
    assert held_out["rows"] == 7
    assert held_out["development_uri"] == manifest["development_uri"]


def test_an_archive_keeps_the_rows_of_pictures_that_are_gone(tmp_path: Path, rows: pd.DataFrame) -> None:
    archive, before = str(tmp_path / "archive"), write(tmp_path, rows[:8])
    assert gather_archive(archive, before, store=str(tmp_path)) == {"uri": before["uri"], "digest": before["digest"]}
    append_manifest(archive, before["uri"], before["digest"])
    grown = gather_archive(archive, write(tmp_path, rows[2:]), store=str(tmp_path))
    appended = append_manifest(archive, grown["uri"], grown["digest"])
    assert appended.read_rows(0, 12)["sample_id"].tolist() == rows["sample_id"].tolist()


def test_a_memory_that_is_none_is_an_error(tmp_path: Path) -> None:
    assert read_memory(str(tmp_path)) is None
    filesystems.write_json(str(tmp_path / "retrain" / "memory.json"), {"listing": 3})
    with pytest.raises(RetrainError, match="not what a retraining remembers"):
        read_memory(str(tmp_path))
