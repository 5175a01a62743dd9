"""CIFAR-10 in both published versions as a one-class benchmark: no abnormal picture trains."""

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from storage.datasets.cifar10 import Cifar10Source, list_cifar10
from storage.datasets.miniatures.one_class import CIFAR_CLASSES, small_pictures, write_cifar10
from storage.datasets.one_class import ABNORMAL_IN_TRAINING
from storage.datasets.source import SourceError, SourceItem
from storage.frames import read_frame


def listed(root: Path, **options: object) -> list[SourceItem]:
    return list_cifar10(Cifar10Source.model_validate({"path": str(root), "normal_class": "cat", **options}))


@pytest.mark.parametrize("version", ["py", "bin"])
def test_one_class_is_normal_and_training_holds_no_other(tmp_path: Path, version: str) -> None:
    items = listed(write_cifar10(tmp_path, version=version), validation_share=0.2)  # 5 × 20 and 20, two a class in each file
    assert len(items) == 120
    assert Counter((item.split, item.label) for item in items if not item.excluded) == {
        ("train", 0): 8,
        ("validation", 0): 2,
        ("validation", 1): 18,
        ("test", 0): 2,
        ("test", 1): 18,
    }
    assert Counter(item.excluded for item in items) == {None: 48, ABNORMAL_IN_TRAINING: 72}
    assert len({item.subject_id for item in items}) == 120
    assert {item.finding for item in items if item.label} == set(CIFAR_CLASSES) - {"cat"}


def test_a_frame_shows_the_class_that_its_item_says(tmp_path: Path) -> None:
    items = listed(write_cifar10(tmp_path), normal_class="frog")
    of_third_batch = [item for item in items if item.uri.endswith("data_batch_3")]
    labels = [CIFAR_CLASSES.index(item.finding or "frog") for item in of_third_batch]
    expected = small_pictures(labels, seed=2)
    for index in (0, 7, 19):
        item = of_third_batch[index]
        assert item.frame == f"data:{index}"
        assert (read_frame(item.uri, item.frame, sha256="a") == expected[index]).all()


def test_abnormal_pictures_of_the_training_part_can_be_left_out_of_validation_too(tmp_path: Path) -> None:
    items = listed(write_cifar10(tmp_path), abnormal_of_train="leave-out", validation_share=0.2)
    assert Counter((item.split, item.label) for item in items if not item.excluded) == {
        ("train", 0): 8,
        ("validation", 0): 2,
        ("test", 0): 2,
        ("test", 1): 18,
    }


def test_the_folder_of_batches_itself_is_found(tmp_path: Path) -> None:
    root = write_cifar10(tmp_path)
    assert listed(root / "cifar-10-batches-py") == listed(root)


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch"])
def test_a_missing_batch_is_refused(tmp_path: Path, name: str) -> None:
    root = write_cifar10(tmp_path)
    (root / "cifar-10-batches-py" / name).unlink()
    with pytest.raises(SourceError, match=name):
        listed(root)


def test_another_folder_is_refused_saying_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"not CIFAR-10: expected cifar-10-batches-py/.*unpack"):
        listed(tmp_path)


def test_a_damaged_batch_and_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    root = write_cifar10(tmp_path, version="bin")
    batch = root / "cifar-10-batches-bin/data_batch_1.bin"
    whole = batch.read_bytes()
    batch.write_bytes(bytes([10]) + whole[1:])
    with pytest.raises(SourceError, match="one label a picture from 0 to 9"):
        listed(root)
    batch.write_bytes(whole[:-1])
    with pytest.raises(SourceError, match=r"data_batch_1\.bin: unreadable"):
        listed(root)


def test_an_unknown_class_is_refused_by_the_configuration() -> None:
    with pytest.raises(ValidationError, match="normal_class"):
        Cifar10Source(path=".", normal_class="plane")  # type: ignore[arg-type]
