"""SVHN's cropped digits as a one-class benchmark, with its ten for the zero."""

from collections import Counter
from pathlib import Path

import pytest

from storage.datasets.miniatures.one_class import small_pictures, write_svhn
from storage.datasets.source import SourceError, SourceItem
from storage.datasets.svhn import SvhnSource, list_svhn
from storage.frames import read_frame


def listed(root: Path, **options: object) -> list[SourceItem]:
    return list_svhn(SvhnSource.model_validate({"path": str(root), "normal_class": 0, **options}))


def test_the_digit_zero_is_the_label_ten_and_training_holds_no_other(tmp_path: Path) -> None:
    items = listed(write_svhn(tmp_path), validation_share=0.25)  # 40 and 20
    by_split = Counter((item.split, item.label) for item in items if not item.excluded)
    assert by_split["train", 0] + by_split["validation", 0] == 4
    assert by_split["validation", 0] + by_split["validation", 1] == 10
    assert (by_split["train", 1], by_split["test", 0], by_split["test", 1]) == (0, 2, 18)
    assert {item.finding for item in items if item.label} == set("123456789")
    assert len({item.subject_id for item in items}) == 60


def test_a_frame_shows_the_digit_that_its_item_says(tmp_path: Path) -> None:
    items = [item for item in listed(write_svhn(tmp_path)) if item.uri.endswith("test_32x32.mat")]
    expected = small_pictures([int(item.finding or 0) for item in items], seed=20)
    for item, picture in zip(items, expected, strict=True):
        assert (read_frame(item.uri, item.frame or "", sha256="a") == picture).all()


def test_abnormal_digits_of_the_training_part_can_be_left_out(tmp_path: Path) -> None:
    items = listed(write_svhn(tmp_path), abnormal_of_train="leave-out")
    assert not any(item.label and item.split in ("train", "validation") for item in items)
    assert sum(item.excluded is not None for item in items) == 36


@pytest.mark.parametrize("name", ["train_32x32.mat", "test_32x32.mat"])
def test_another_folder_is_refused_saying_what_is_expected(tmp_path: Path, name: str) -> None:
    (write_svhn(tmp_path) / name).unlink()
    with pytest.raises(SourceError, match=r"expected train_32x32\.mat and test_32x32\.mat"):
        listed(tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (write_svhn(tmp_path) / "train_32x32.mat").write_bytes(b"MATLAB")
    with pytest.raises(SourceError, match=r"train_32x32\.mat: unreadable"):
        listed(tmp_path)
