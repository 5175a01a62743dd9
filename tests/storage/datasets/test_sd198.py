"""SD-198: classes as folders, the lists of the archive, the published split."""

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from storage.datasets.miniatures.dermatology import BURGERT_CLASSES, write_sd198
from storage.datasets.sd198 import Sd198Source, list_sd198
from storage.datasets.source import SourceError


@pytest.fixture
def sd198(tmp_path: Path) -> Path:
    return write_sd198(tmp_path / "sd-198")


def test_every_class_is_abnormal_unless_something_else_is_said(sd198: Path) -> None:
    items = list_sd198(Sd198Source(path=str(sd198)))
    assert len(items) == 20
    assert {(item.label, item.split, item.excluded) for item in items} == {(1, None, None)}
    assert Counter(item.finding for item in items) == dict.fromkeys((*BURGERT_CLASSES, "Onychomycosis"), 2)
    assert len({item.subject_id for item in items}) == 20
    assert all(Path(item.uri).is_file() for item in items)


def test_the_configuration_says_which_classes_are_normal_abnormal_and_left_out(sd198: Path) -> None:
    nine = list_sd198(Sd198Source(path=str(sd198), abnormal=BURGERT_CLASSES))
    assert {item.finding for item in nine} == set(BURGERT_CLASSES)
    items = list_sd198(Sd198Source(path=str(sd198), abnormal=("Psoriasis",), normal=("Eczema",)))
    assert [(item.label, item.finding) for item in items] == [(0, None), (0, None), (1, "Psoriasis"), (1, "Psoriasis")]
    assert len(list_sd198(Sd198Source(path=str(sd198), left_out=("Onychomycosis",)))) == 18


def test_the_held_out_list_of_a_published_fold_is_the_test_split(sd198: Path) -> None:
    items = list_sd198(Sd198Source(path=str(sd198), fold=0))
    assert [number for number, item in enumerate(items) if item.split == "test"] == [4, 9, 14, 19]
    assert Counter(item.split for item in items) == {"train": 16, "test": 4}


def test_a_fold_that_is_not_there_or_holds_a_picture_on_both_sides_is_refused(sd198: Path) -> None:
    with pytest.raises(SourceError, match=r"8_2_split/train_3\.txt"):
        list_sd198(Sd198Source(path=str(sd198), fold=3))
    held_out = sd198 / "8_2_split" / "val_0.txt"
    held_out.write_text(held_out.read_text() + (sd198 / "8_2_split" / "train_0.txt").read_text().splitlines()[0])
    with pytest.raises(SourceError, match="in train and in val"):
        list_sd198(Sd198Source(path=str(sd198), fold=0))


def test_without_the_lists_the_folders_are_the_classes(sd198: Path) -> None:
    for name in ("images.txt", "classes.txt", "image_class_labels.txt"):
        (sd198 / name).unlink()
    items = list_sd198(Sd198Source(path=str(sd198), abnormal=("Psoriasis",)))
    assert [(Path(item.uri).name, item.finding) for item in items] == [("007000VB.jpg", "Psoriasis"), ("007001VB.jpg", "Psoriasis")]


def test_a_row_without_a_file_is_listed_and_a_file_without_a_row_is_excluded(sd198: Path) -> None:
    (sd198 / "images/Psoriasis/007000VB.jpg").rename(sd198 / "images/Psoriasis/unlisted.jpg")
    items = list_sd198(Sd198Source(path=str(sd198), abnormal=("Psoriasis",)))
    assert [(Path(item.uri).name, item.label, item.excluded) for item in items] == [
        ("007000VB.jpg", 1, None),
        ("007001VB.jpg", 1, None),
        ("unlisted.jpg", None, "no row in images.txt"),
    ]
    assert len(list_sd198(Sd198Source(path=str(sd198), abnormal=("Eczema",)))) == 2


def test_the_same_picture_in_two_classes_is_one_subject(sd198: Path) -> None:
    for name in ("images.txt", "classes.txt", "image_class_labels.txt"):
        (sd198 / name).unlink()
    (sd198 / "images/Eczema/007000VB.jpg").write_bytes((sd198 / "images/Psoriasis/007000VB.jpg").read_bytes())
    items = list_sd198(Sd198Source(path=str(sd198), abnormal=("Psoriasis", "Eczema")))
    assert [item.finding for item in items if item.subject_id == "007000VB"] == ["Eczema", "Psoriasis"]


def test_lists_that_contradict_each_other_are_refused(sd198: Path) -> None:
    labels = sd198 / "image_class_labels.txt"
    labels.write_text(labels.read_text().replace("3 2\n", "3 5\n"))
    with pytest.raises(SourceError, match=r"picture 3 is Allergic_Contact_Dermatitis/001000VB\.jpg .* Erythema_Multiforme"):
        list_sd198(Sd198Source(path=str(sd198)))


def test_a_misspelt_class_is_refused_with_the_nearest_names(sd198: Path) -> None:
    with pytest.raises(SourceError, match="did you mean Erythema_Annulare_Centrifigum"):
        list_sd198(Sd198Source(path=str(sd198), abnormal=("Erythema_Annulare_Centrifugum",)))
    with pytest.raises(ValidationError, match="more than once"):
        Sd198Source(path="x", normal=("Eczema",), abnormal=("Eczema",))


def test_another_folder_is_refused_with_the_expected_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected images/<Class_Name>/\*\.jpg"):
        list_sd198(Sd198Source(path=str(tmp_path)))
