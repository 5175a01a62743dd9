"""The ISIC archive as isic-cli leaves it: total body photographs among dermoscopic pictures, in the older and the newer table."""

from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from storage.datasets.isic_archive import IsicArchiveSource, list_isic_archive
from storage.datasets.miniatures.dermatology import write_isic_archive
from storage.datasets.source import SourceError


@pytest.fixture(params=["newer table", "older table"])
def archive(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_isic_archive(tmp_path / "isic", newer_table=request.param == "newer table", width_px=160)


def _edit(archive: Path, old: str, new: str) -> None:
    table = archive / "metadata.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))


def test_both_generations_of_the_table_give_the_same_labels_and_subjects(archive: Path) -> None:
    items = list_isic_archive(IsicArchiveSource(path=str(archive)))
    assert [item.label for item in items] == [None, None, None, 1, 0, 0]
    assert [item.subject_id for item in items] == ["IP_0000000", "IP_0000000", "IP_0000001", "IP_0000001", "IP_0000002", "IP_0000002"]
    assert [item.lesion_id for item in items] == [None, None, None, "IL_0000003", "IL_0000004", "IL_0000005"]
    assert all(Path(item.uri).is_file() and item.excluded is None for item in items)
    assert {item.skin_tone for item in items} == {"II"}


def test_age_and_sex_are_not_carried(archive: Path) -> None:
    carried = {value for item in list_isic_archive(IsicArchiveSource(path=str(archive))) for value in asdict(item).values()}
    assert not carried & {"55", "female"}


def test_findings_and_sites_are_in_the_words_of_the_table(tmp_path: Path) -> None:
    newer = list_isic_archive(IsicArchiveSource(path=str(write_isic_archive(tmp_path / "newer", width_px=160))))
    older = list_isic_archive(IsicArchiveSource(path=str(write_isic_archive(tmp_path / "older", newer_table=False, width_px=160))))
    assert [item.finding for item in newer] == [None, None, None, "Melanoma, NOS", None, None]
    assert [item.finding for item in older] == [None, None, None, "melanoma", None, None]
    assert {item.site for item in newer} == {"Trunk:Posterior trunk", "Trunk:Posterior trunk:Upper back"}
    assert {item.site for item in older} == {"posterior torso"}


def test_total_body_photographs_are_chosen_by_image_type_and_can_count_as_normal(archive: Path) -> None:
    source = IsicArchiveSource(path=str(archive), image_types=("tbp tile: OVERVIEW",), undiagnosed="normal")
    assert [(Path(item.uri).name, item.label) for item in list_isic_archive(source)] == [
        ("ISIC_9000000.jpg", 0),
        ("ISIC_9000001.jpg", 0),
        ("ISIC_9000002.jpg", 0),
    ]


def test_a_site_is_chosen_by_its_name_at_any_level(tmp_path: Path) -> None:
    archive = write_isic_archive(tmp_path, width_px=160)
    both_generations = IsicArchiveSource(path=str(archive), sites=("posterior torso", "Upper back"))
    assert [Path(item.uri).stem[-1] for item in list_isic_archive(both_generations)] == ["3", "4", "5"]


def test_the_most_specific_diagnosis_decides(tmp_path: Path) -> None:
    archive = write_isic_archive(tmp_path, width_px=160)
    source = IsicArchiveSource(path=str(archive), image_types=("dermoscopic",), normal=("Benign",), abnormal=("Malignant", "Nevus"))
    assert [(item.label, item.finding) for item in list_isic_archive(source)] == [(1, "Melanoma, NOS"), (1, "Nevus"), (1, "Nevus")]


def test_what_is_neither_benign_nor_malignant_is_unknown_with_its_finding(tmp_path: Path) -> None:
    archive = write_isic_archive(tmp_path, width_px=160)
    _edit(archive, "Malignant,Malignant melanocytic proliferations (Melanoma),", "Indeterminate,Indeterminate melanocytic proliferations,")
    item = list_isic_archive(IsicArchiveSource(path=str(archive)))[3]
    assert (item.label, item.finding) == (None, "Melanoma, NOS")


def test_without_a_patient_the_lesion_and_then_the_picture_is_the_subject(archive: Path) -> None:
    _edit(archive, ",IP_0000001,", ",,")
    items = list_isic_archive(IsicArchiveSource(path=str(archive)))
    assert (items[2].subject_id, items[3].subject_id) == ("ISIC_9000002", "IL_0000003")


def test_a_row_without_a_file_is_listed_where_the_file_should_be_and_a_file_without_a_row_is_excluded(archive: Path) -> None:
    (archive / "ISIC_9000001.jpg").rename(archive / "ISIC_1234567.JPG")
    items = list_isic_archive(IsicArchiveSource(path=str(archive), image_types=("TBP tile: overview",)))
    assert items[1].uri == str(archive / "ISIC_9000001.jpg")
    assert not Path(items[1].uri).exists()
    assert [(Path(item.uri).name, item.excluded, item.label) for item in items if item.excluded] == [
        ("ISIC_1234567.JPG", "no row in metadata.csv", None)
    ]
    assert len(items) == 4  # pictures of a type that was not chosen have a row: they are no strays


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"image_types": ("dermoscopic", "overveiw")}, r"no row has \['overveiw'\] of image_types; the table has .*TBP tile: overview"),
        ({"sites": ("anterior torso",)}, r"no row has any of sites \['anterior torso'\]"),
    ],
)
def test_a_choice_that_leaves_nothing_is_refused_with_what_is_there(
    archive: Path, choice: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        list_isic_archive(IsicArchiveSource(path=str(archive), **choice))  # type: ignore[arg-type]


def test_choices_that_no_row_has_together_are_refused(tmp_path: Path) -> None:
    archive = write_isic_archive(tmp_path, width_px=160)
    with pytest.raises(SourceError, match="of 6 rows none has the image_types and sites of the configuration together"):
        list_isic_archive(IsicArchiveSource(path=str(archive), image_types=("TBP tile: overview",), sites=("Upper back",)))


def test_a_picture_named_twice_or_not_at_all_is_refused_with_its_line(archive: Path) -> None:
    _edit(archive, "ISIC_9000002", "ISIC_9000001")
    with pytest.raises(SourceError, match="line 4: isic_id is ISIC_9000001, which an earlier line names too"):
        list_isic_archive(IsicArchiveSource(path=str(archive)))
    _edit(archive, "ISIC_9000000", "")
    with pytest.raises(SourceError, match="line 2: isic_id is empty"):
        list_isic_archive(IsicArchiveSource(path=str(archive)))


def test_another_folder_is_refused_with_the_expected_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected metadata\.csv with ISIC_\*\.jpg beside it"):
        list_isic_archive(IsicArchiveSource(path=str(tmp_path)))
    (tmp_path / "metadata.csv").write_text("image_id,dx\nISIC_0024306,nv\n")
    with pytest.raises(SourceError, match="isic_id"):
        list_isic_archive(IsicArchiveSource(path=str(tmp_path)))


def test_a_diagnosis_cannot_be_normal_and_abnormal() -> None:
    with pytest.raises(ValidationError, match="both name"):
        IsicArchiveSource(path="x", normal=("Nevus",), abnormal=("nevus",))
