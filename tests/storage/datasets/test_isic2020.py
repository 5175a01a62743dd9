"""ISIC 2020: patients, the two versions of the table, Kaggle's layout and the published duplicates."""

from collections import Counter
from pathlib import Path

import pytest

from storage.datasets.isic2020 import Isic2020Source, list_isic2020
from storage.datasets.miniatures.dermatology import write_isic2020
from storage.datasets.source import SourceError

TABLE, DUPLICATES = "ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_Duplicates.csv"


@pytest.fixture
def isic2020(tmp_path: Path) -> Path:
    return write_isic2020(tmp_path / "isic-2020")


def _excluded(folder: Path) -> dict[str, str | None]:
    return {Path(item.uri).stem[-2:]: item.excluded for item in list_isic2020(Isic2020Source(path=str(folder))) if item.excluded}


def test_labels_patients_lesions_findings_and_sites_are_read(isic2020: Path) -> None:
    items = list_isic2020(Isic2020Source(path=str(isic2020)))
    assert Counter((item.label, item.finding) for item in items) == {(0, None): 10, (1, "melanoma"): 2}
    assert Counter(item.subject_id for item in items) == {"IP_7279968": 4, "IP_7279969": 3, "IP_7279970": 3, "IP_7279971": 2}
    assert len({item.lesion_id for item in items}) == 11
    assert {item.site for item in items} == {"torso", "lower extremity", None}
    assert all(Path(item.uri).is_file() for item in items)


def test_of_a_published_pair_the_second_is_excluded_unless_kept(isic2020: Path) -> None:
    assert _excluded(isic2020) == {"22": f"duplicate of ISIC_2637011 ({DUPLICATES})"}
    kept = list_isic2020(Isic2020Source(path=str(isic2020), duplicates="kept"))
    assert not any(item.excluded for item in kept)


def test_of_a_chain_of_duplicates_one_stays_and_it_is_one_that_has_a_file(isic2020: Path) -> None:
    (isic2020 / DUPLICATES).write_text("image_name_1,image_name_2\nISIC_2637012,ISIC_2637013\nISIC_2637014,ISIC_2637013\n")
    assert {name: (reason or "")[:25] for name, reason in _excluded(isic2020).items()} == {
        "13": "duplicate of ISIC_2637012",
        "14": "duplicate of ISIC_2637012",
    }
    (isic2020 / "train/ISIC_2637012.jpg").unlink()
    assert set(_excluded(isic2020)) == {"12", "14"}


def test_without_the_list_of_duplicates_nothing_is_excluded(isic2020: Path) -> None:
    (isic2020 / DUPLICATES).unlink()
    assert _excluded(isic2020) == {}


def test_the_first_version_of_the_table_has_no_lesions(isic2020: Path) -> None:
    lines = [line.split(",") for line in (isic2020 / TABLE).read_text().splitlines()]
    (isic2020 / "ISIC_2020_Training_GroundTruth.csv").write_text("".join(",".join(cells[:2] + cells[3:]) + "\n" for cells in lines))
    (isic2020 / TABLE).unlink()
    items = list_isic2020(Isic2020Source(path=str(isic2020)))
    assert len(items) == 12
    assert {item.lesion_id for item in items} == {None}


def test_the_layout_of_kaggle_is_read_with_its_jpegs_not_its_dicoms(isic2020: Path) -> None:
    (isic2020 / TABLE).rename(isic2020 / "train.csv")
    (isic2020 / "jpeg").mkdir()
    (isic2020 / "train").rename(isic2020 / "jpeg/train")
    (isic2020 / "train").mkdir()
    (isic2020 / "train/ISIC_2637011.dcm").write_bytes(b"")
    items = list_isic2020(Isic2020Source(path=str(isic2020)))
    assert items[0].uri == str(isic2020 / "jpeg/train/ISIC_2637011.jpg")
    assert len(items) == 12


def test_a_label_is_taken_from_either_column_and_unknown_without_both(isic2020: Path) -> None:
    table = isic2020 / TABLE
    table.write_text(table.read_text().replace("melanoma,malignant,1", "melanoma,malignant,", 1).replace("nevus,benign,0", "nevus,,", 1))
    items = list_isic2020(Isic2020Source(path=str(isic2020)))
    assert items[0].label == 1
    assert [item.label for item in items].count(None) == 1


@pytest.mark.parametrize(("cells", "message"), [("benign,1", "has target 1 and is called benign"), ("malignant,yes", "target 'yes'")])
def test_labels_that_contradict_or_are_no_label_are_refused(isic2020: Path, cells: str, message: str) -> None:
    table = isic2020 / TABLE
    table.write_text(table.read_text().replace("malignant,1", cells, 1))
    with pytest.raises(SourceError, match=f"ISIC_2637011 has {message}|ISIC_2637011 {message}"):
        list_isic2020(Isic2020Source(path=str(isic2020)))


def test_a_patient_who_is_not_known_is_replaced_by_the_lesion(isic2020: Path) -> None:
    table = isic2020 / TABLE
    table.write_text(table.read_text().replace("ISIC_2637015,IP_7279969,", "ISIC_2637015,,"))
    item = list_isic2020(Isic2020Source(path=str(isic2020)))[4]
    assert item.subject_id == item.lesion_id == "IL_2084004"


def test_a_row_without_a_file_is_listed_and_a_file_without_a_row_is_excluded(isic2020: Path) -> None:
    (isic2020 / "train/ISIC_2637015.jpg").rename(isic2020 / "train/ISIC_0000001.jpg")
    items = list_isic2020(Isic2020Source(path=str(isic2020)))
    assert items[4].uri == str(isic2020 / "train/ISIC_2637015.jpg")
    assert (items[-1].uri, items[-1].excluded) == (str(isic2020 / "train/ISIC_0000001.jpg"), f"no row in {TABLE}")


def test_another_folder_is_refused_with_the_expected_layout(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"expected a table \(ISIC_2020_Training_GroundTruth_v2\.csv or .* and ISIC_\*\.jpg in jpeg/train/"
    ):
        list_isic2020(Isic2020Source(path=str(tmp_path)))
