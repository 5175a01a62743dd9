"""ISIC 2018 task 3: one-hot classes, lesions seen more than once, the challenge's parts."""

from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import ValidationError

from storage import filesystems
from storage.datasets.isic2018 import Isic2018Source, list_isic2018
from storage.datasets.miniatures.dermatology import ISIC_2018_CLASSES, write_isic2018
from storage.datasets.source import SourceError

TRUTH = "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"
LESIONS = "ISIC2018_Task3_Training_LesionGroupings.csv"


@pytest.fixture
def isic2018(tmp_path: Path) -> Path:
    return write_isic2018(tmp_path / "isic-2018", lesions={"NV": 4, "MEL": 2, "DF": 1})


def _edit(table: Path, old: str, new: str) -> None:
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))


def test_naevi_are_normal_and_each_other_class_is_a_finding(isic2018: Path) -> None:
    items = list_isic2018(Isic2018Source(path=str(isic2018)))
    assert Counter((item.label, item.finding) for item in items) == {(0, None): 5, (1, "MEL"): 3, (1, "DF"): 2}
    assert all(Path(item.uri).is_file() and item.excluded is None and item.split is None for item in items)


def test_pictures_of_one_lesion_are_one_subject(isic2018: Path) -> None:
    items = list_isic2018(Isic2018Source(path=str(isic2018)))
    assert [item.subject_id for item in items[:3]] == ["HAM_0001000", "HAM_0001000", "HAM_0001001"]
    assert all(item.lesion_id == item.subject_id for item in items)
    assert len({item.lesion_id for item in items}) == 7


def test_classes_are_normal_or_left_out_by_choice(isic2018: Path) -> None:
    items = list_isic2018(Isic2018Source(path=str(isic2018), normal=("NV", "DF"), left_out=("MEL",)))
    assert Counter(item.label for item in items) == {0: 7}
    with pytest.raises(ValidationError, match="both name"):
        Isic2018Source(path="x", normal=("NV",), left_out=("NV",))
    with pytest.raises(ValidationError, match="left_out"):
        Isic2018Source(path="x", left_out=("NEVUS",))  # type: ignore[arg-type]


def test_without_the_lesion_supplement_the_set_is_refused_unless_asked(isic2018: Path) -> None:
    (isic2018 / LESIONS).unlink()
    with pytest.raises(SourceError, match=rf"{LESIONS} is missing.*lesions_required: false"):
        list_isic2018(Isic2018Source(path=str(isic2018)))
    items = list_isic2018(Isic2018Source(path=str(isic2018), lesions_required=False))
    assert [(item.subject_id, item.lesion_id) for item in items[:2]] == [("ISIC_0024306", None), ("ISIC_0024307", None)]


def test_a_picture_that_the_supplement_does_not_know_is_its_own_subject(isic2018: Path) -> None:
    _edit(isic2018 / LESIONS, "ISIC_0024306,", "ISIC_9999999,")
    assert list_isic2018(Isic2018Source(path=str(isic2018)))[0].subject_id == "ISIC_0024306"


def test_the_parts_of_the_challenge_can_be_the_splits(isic2018: Path) -> None:
    folder = isic2018 / "ISIC2018_Task3_Validation_Input"
    folder.mkdir()
    (folder / "ISIC_0034321.jpg").write_bytes(b"")
    columns = ",".join(ISIC_2018_CLASSES)
    (isic2018 / "ISIC2018_Task3_Validation_GroundTruth.csv").write_text(f"image,{columns}\nISIC_0034321,0.0,0.0,1.0,0.0,0.0,0.0,0.0\n")
    items = list_isic2018(Isic2018Source(path=str(isic2018), parts=("Training", "Validation"), official_split=True))
    assert Counter(item.split for item in items) == {"train": 10, "validation": 1}
    assert (items[-1].finding, items[-1].subject_id, items[-1].lesion_id) == ("BCC", "ISIC_0034321", None)


def test_a_row_without_a_file_is_listed_and_a_file_without_a_row_is_excluded(isic2018: Path) -> None:
    folder = isic2018 / "ISIC2018_Task3_Training_Input"
    (folder / "ISIC_0024306.jpg").rename(folder / "ISIC_0000001.jpg")
    items = list_isic2018(Isic2018Source(path=str(isic2018), left_out=("DF",)))
    assert items[0].uri == str(folder / "ISIC_0024306.jpg")
    assert [(item.uri, item.excluded, item.label) for item in items if item.excluded] == [
        (str(folder / "ISIC_0000001.jpg"), "no row in ISIC2018_Task3_Training_GroundTruth.csv", None)
    ]


def test_a_row_of_no_class_or_of_two_is_refused(isic2018: Path) -> None:
    _edit(isic2018 / TRUTH, "ISIC_0024306,0.0,1.0", "ISIC_0024306,1.0,1.0")
    with pytest.raises(SourceError, match=r"ISIC_0024306 belongs to \['MEL', 'NV'\]; expected 1.0 in exactly one"):
        list_isic2018(Isic2018Source(path=str(isic2018)))
    _edit(isic2018 / TRUTH, "ISIC_0024306,1.0,1.0", "ISIC_0024306,0.0,0.0")
    with pytest.raises(SourceError, match="belongs to no class"):
        list_isic2018(Isic2018Source(path=str(isic2018)))


def test_a_picture_with_two_rows_is_refused(isic2018: Path) -> None:
    _edit(isic2018 / TRUTH, "ISIC_0024307", "ISIC_0024306")
    with pytest.raises(SourceError, match="line 3: image is ISIC_0024306, which an earlier line names too"):
        list_isic2018(Isic2018Source(path=str(isic2018)))


def test_a_part_that_is_not_there_is_refused_with_the_expected_layout(isic2018: Path) -> None:
    with pytest.raises(SourceError, match=r"expected ISIC2018_Task3_Test_Input/ISIC_\*\.jpg"):
        list_isic2018(Isic2018Source(path=str(isic2018), parts=("Test",)))


def test_an_object_store_is_read_like_a_folder(isic2018: Path) -> None:
    store = f"memory://{uuid4().hex}"
    for file in isic2018.rglob("*.*"):
        filesystems.write_bytes(filesystems.join(store, file.relative_to(isic2018).as_posix()), file.read_bytes())
    items = list_isic2018(Isic2018Source(path=store))
    assert items[0].uri == f"{store}/ISIC2018_Task3_Training_Input/ISIC_0024306.jpg"
    assert all(filesystems.exists(item.uri) and item.excluded is None for item in items)
