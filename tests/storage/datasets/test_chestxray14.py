"""NIH ChestX-ray14 as published: the table with commas in its header, twelve folders, two lists."""

from dataclasses import asdict
from pathlib import Path

import pytest

from storage.datasets.chestxray14 import ChestXray14Source, list_chestxray14
from storage.datasets.miniatures.radiology import CHESTXRAY_ROWS, write_chestxray14
from storage.datasets.source import SourceError, SourceItem
from storage.images import read_image


def listed(root: Path, **options: object) -> dict[str, SourceItem]:
    items = list_chestxray14(ChestXray14Source.model_validate({"path": str(root), **options}))
    assert len({item.uri for item in items}) == len(items)
    return {Path(item.uri).stem: item for item in items}


def test_radiographs_have_patient_finding_projection_spacing_and_the_official_test_part(tmp_path: Path) -> None:
    items = listed(write_chestxray14(tmp_path))
    assert list(items) == [row.split(".")[0] for row in CHESTXRAY_ROWS]
    assert [item.label for item in items.values()] == [1, 1, 0, 1, 0, 0, 1]
    assert [item.finding for item in items.values()] == [
        "Cardiomegaly",
        "Cardiomegaly|Emphysema",
        None,
        "Hernia",
        None,
        None,
        "Infiltration",
    ]
    assert [item.subject_id for item in items.values()] == ["1", "1", "2", "3", "5", "11", "11"]
    assert [item.projection for item in items.values()] == ["PA"] * 5 + ["AP"] * 2
    assert [item.split for item in items.values()] == [None, None, None, "test", "test", None, None]
    assert not any(item.excluded for item in items.values())
    # 2500 × 2048 px of 168 µm became 1024 × 1024
    assert items["00000003_000"].spacing_um == pytest.approx((168 * 2500 / 1024 * 168 * 2048 / 1024) ** 0.5)
    assert read_image(items["00000011_001"].uri).shape == (64, 64, 3)


def test_no_age_and_no_gender_is_carried(tmp_path: Path) -> None:
    row = "00000001_000.png,No Finding,0,1,057Y,FEMALE,PA,2682,2749,0.143,0.143"
    (item,) = listed(write_chestxray14(tmp_path, rows=[row], test=[])).values()
    assert not any("057Y" in str(value) or "FEMALE" in str(value) for value in asdict(item).values())


@pytest.mark.parametrize(("projection", "count"), [("PA", 5), ("AP", 2), ("both", 7)])
def test_one_projection_can_be_listed_alone(tmp_path: Path, projection: str, count: int) -> None:
    assert len(listed(write_chestxray14(tmp_path), projection=projection)) == count


def test_pictures_in_one_folder_and_the_corrected_table_are_read(tmp_path: Path) -> None:
    root = write_chestxray14(tmp_path)
    (root / "images").mkdir()
    for path in root.glob("images_*/images/*.png"):
        path.rename(root / "images" / path.name)
    lines = (root / "Data_Entry_2017.csv").read_text().splitlines()
    corrected = [line.rstrip(",").replace("No Finding", "Mass") for line in lines]  # without the commas at the end
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(corrected))
    assert {item.label for item in listed(root).values()} == {1}


def test_both_spellings_of_a_patients_number_are_one_patient(tmp_path: Path) -> None:
    rows = [
        "00000013_000.png,No Finding,0,13,57,M,PA,2500,2048,0.168,0.168",
        "00000013_001.png,No Finding,1,00000013,57,M,PA,2500,2048,0.168,0.168",
        "00000013_002.png,No Finding,2,,57,M,PA,2500,2048,0.168,0.168",
    ]
    assert {item.subject_id for item in listed(write_chestxray14(tmp_path, rows=rows, test=[])).values()} == {"13"}


def test_rows_without_a_file_and_files_without_a_row_are_listed(tmp_path: Path) -> None:
    root = write_chestxray14(tmp_path)
    (root / "images_001/images/00000001_001.png").rename(root / "images_001/images/00099999_000.png")
    items = listed(root)
    assert items["00000001_001"].uri.endswith("/images/00000001_001.png")
    assert items["00000001_001"].excluded is None
    assert items["00099999_000"].excluded == "no row in Data_Entry_2017.csv"
    assert items["00099999_000"].label is None
    assert len(listed(root, projection="AP")) == 3  # the other projection's files do have rows


def test_a_picture_on_neither_list_is_excluded_unless_the_lists_are_ignored(tmp_path: Path) -> None:
    root = write_chestxray14(tmp_path)
    (root / "train_val_list.txt").write_text("00000001_000.png\n")
    assert listed(root)["00000002_000"].excluded == "on neither train_val_list.txt nor test_list.txt"
    ignored = listed(root, lists="ignored")
    assert {(item.excluded, item.split) for item in ignored.values()} == {(None, None)}


def test_the_official_lists_must_be_there_and_agree(tmp_path: Path) -> None:
    root = write_chestxray14(tmp_path)
    (root / "train_val_list.txt").write_text("00000003_000.png\n")
    with pytest.raises(SourceError, match="on both"):
        listed(root)
    (root / "train_val_list.txt").unlink()
    with pytest.raises(SourceError, match=r"no train_val_list\.txt.*lists: ignored"):
        listed(root)
    assert len(listed(root, lists="ignored")) == 7


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write_chestxray14(tmp_path)
    copy = root / "images_002/images/00000001_000.png"
    copy.write_bytes((root / "images_001/images/00000001_000.png").read_bytes())
    with pytest.raises(SourceError, match="two files are named '00000001_000'"):
        listed(root)


def test_a_row_without_a_size_has_no_spacing_and_one_with_words_is_refused(tmp_path: Path) -> None:
    rows = [f"0000000{number}_000.png,No Finding,0,{number},57,M,PA,{width},2749,0.143,0.143" for number, width in ((1, ""), (2, "2682"))]
    root = write_chestxray14(tmp_path, rows=rows, test=[])
    assert listed(root)["00000001_000"].spacing_um is None
    (root / "Data_Entry_2017.csv").write_text((root / "Data_Entry_2017.csv").read_text().replace("2682", "wide"))
    with pytest.raises(SourceError, match="expected numbers"):
        listed(root)


@pytest.mark.parametrize(("kept", "told"), [("images_001", "expected Data_Entry_2017.csv"), ("Data_Entry_2017.csv", "no radiographs")])
def test_another_folder_is_refused_saying_what_is_expected(tmp_path: Path, kept: str, told: str) -> None:
    write_chestxray14(tmp_path / "whole")
    (tmp_path / "part").mkdir()
    (tmp_path / "whole" / kept).rename(tmp_path / "part" / kept)
    with pytest.raises(SourceError, match=told):
        listed(tmp_path / "part")


def test_a_table_without_a_needed_column_is_refused(tmp_path: Path) -> None:
    root = write_chestxray14(tmp_path)
    (root / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels\n00000001_000.png,No Finding\n")
    with pytest.raises(SourceError, match="Patient ID"):
        listed(root)
