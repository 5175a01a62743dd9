"""ArsenicSkinImageBD: originals in folders spelt as published, augmented copies that must stay out."""

from pathlib import Path

import pytest

from storage.datasets.arsenic_skin import ArsenicSkinSource, list_arsenic_skin
from storage.datasets.miniatures.dermatology import write_arsenic_skin
from storage.datasets.source import SourceError


@pytest.fixture
def arsenic_skin(tmp_path: Path) -> Path:
    return write_arsenic_skin(tmp_path / "ArsenicSkinImageBD", not_infected=3, infected=2)


def test_originals_of_both_conditions_are_listed_and_no_augmented_copy(arsenic_skin: Path) -> None:
    items = list_arsenic_skin(ArsenicSkinSource(path=str(arsenic_skin)))
    assert [(item.label, item.finding) for item in items] == [(0, None)] * 3 + [(1, "arsenicosis")] * 2
    assert all("/Original/" in item.uri and Path(item.uri).is_file() for item in items)
    assert len({item.subject_id for item in items}) == 5  # both folders have an IMG_1180


def test_one_condition_can_be_wanted_alone(arsenic_skin: Path) -> None:
    items = list_arsenic_skin(ArsenicSkinSource(path=str(arsenic_skin), conditions=("not_infected",)))
    assert {item.label for item in items} == {0}


def test_the_originals_alone_and_corrected_folder_names_are_read_too(arsenic_skin: Path) -> None:
    (arsenic_skin / "Original/not_infacted").rename(arsenic_skin / "Original/Not_Infected")
    assert len(list_arsenic_skin(ArsenicSkinSource(path=str(arsenic_skin / "Original")))) == 5


def test_two_folders_of_one_condition_are_refused(arsenic_skin: Path) -> None:
    (arsenic_skin / "Original/infected").mkdir()
    (arsenic_skin / "Original/infected/IMG_1.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match="infacted and infected; keep one"):
        list_arsenic_skin(ArsenicSkinSource(path=str(arsenic_skin)))


@pytest.mark.parametrize("folder", ["Augmented", "no such folder"])
def test_another_folder_is_refused_with_the_expected_layout(tmp_path: Path, folder: str) -> None:
    (tmp_path / "Augmented" / "other").mkdir(parents=True)
    with pytest.raises(SourceError, match="expected pictures in Original/not_infacted or Original/not_infected"):
        list_arsenic_skin(ArsenicSkinSource(path=str(tmp_path / folder)))


def test_a_condition_without_a_picture_is_refused(arsenic_skin: Path) -> None:
    for picture in (arsenic_skin / "Original/infacted").iterdir():
        picture.unlink()
    with pytest.raises(SourceError, match="no infected photographs"):
        list_arsenic_skin(ArsenicSkinSource(path=str(arsenic_skin)))
