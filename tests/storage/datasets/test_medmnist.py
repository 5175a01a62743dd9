"""MedMNIST's .npz: official splits, labels of one or several findings."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from storage.datasets.medmnist import MedMnistSource, list_medmnist
from storage.datasets.miniatures.one_class import write_medmnist
from storage.datasets.one_class import ABNORMAL_IN_TRAINING
from storage.datasets.source import SourceError, SourceItem
from storage.frames import read_frame


def listed(path: Path, *normal: int, **options: object) -> list[SourceItem]:
    return list_medmnist(MedMnistSource.model_validate({"path": str(path), "normal_labels": normal, **options}))


def test_the_official_splits_count_and_abnormal_training_pictures_are_left_out(tmp_path: Path) -> None:
    items = listed(write_medmnist(tmp_path / "pneumoniamnist.npz"), 0)
    assert [item.split for item in items if not item.excluded] == ["train"] * 6 + ["validation"] * 6 + ["test"] * 8
    assert Counter((item.label, item.excluded) for item in items[:12]) == {(0, None): 6, (1, ABNORMAL_IN_TRAINING): 6}
    assert Counter(item.label for item in items[12:]) == {0: 7, 1: 7}
    assert {item.dataset for item in items} == {"pneumoniamnist"}
    assert len({item.subject_id for item in items}) == 26
    assert read_frame(items[13].uri, items[13].frame or "", sha256="a").shape == (28, 28, 3)


def test_several_labels_can_be_normal_and_findings_are_their_numbers(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path / "pathmnist.npz", classes=5, colour=True)
    items = listed(path, 1, 3, dataset="colon")
    labels = np.concatenate([np.load(path)[f"{part}_labels"] for part in ("train", "val", "test")]).ravel()
    assert [item.label for item in items] == [int(label not in (1, 3)) for label in labels]
    assert [item.finding for item in items] == [None if label in (1, 3) else str(label) for label in labels]
    assert {item.dataset for item in items} == {"colon"}


def test_of_several_findings_none_at_all_is_normal(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path / "chestmnist.npz", columns=4, counts={"train": 30, "val": 20, "test": 20})
    items = listed(path, -1)
    rows = np.concatenate([np.load(path)[f"{part}_labels"] for part in ("train", "val", "test")])
    assert [item.label for item in items] == rows.any(axis=1).astype(int).tolist()
    assert {item.finding for item in items if item.label} == {"|".join(map(str, np.flatnonzero(row))) for row in rows if row.any()}


def test_a_normal_label_that_does_not_occur_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"\['7'\] do not occur; found \['0', '1'\]"):
        listed(write_medmnist(tmp_path / "a.npz"), 0, 7)


def test_another_file_is_refused_saying_what_is_expected(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(SourceError, match="no array 'train_labels'"):
        listed(tmp_path / "other.npz", 0)
    for path in (tmp_path, tmp_path / "absent.npz"):
        with pytest.raises(SourceError, match=r"expected an \.npz with train_images"):
            listed(path, 0)


@pytest.mark.parametrize(
    ("labels", "told"), [(np.zeros((2, 1)), "integers, found float64"), (np.full((2, 3), 2, np.uint8), "3 columns of 0 and 1")]
)
def test_labels_of_another_kind_are_refused(tmp_path: Path, labels: np.ndarray, told: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, train_labels=labels, val_labels=labels, test_labels=labels)
    with pytest.raises(SourceError, match=told):
        listed(path, 0)
