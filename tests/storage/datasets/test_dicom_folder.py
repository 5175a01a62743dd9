"""A PACS export: labels from folders or a table, subjects from pseudonyms, burned-in text held back."""

from dataclasses import asdict
from pathlib import Path

import fsspec
import numpy as np
import pytest

from storage import filesystems
from storage.datasets import dicom_headers
from storage.datasets.dicom_folder import DicomFolderSource, list_dicom_folder
from storage.datasets.miniatures.files import write_csv
from storage.datasets.miniatures.radiology import write_dicom, write_dicom_folder
from storage.datasets.source import SourceError, SourceItem
from storage.dicom import read_dicom

PIXELS = np.zeros((8, 8), np.uint16)


def listed(path: Path | str, **options: object) -> list[SourceItem]:
    return list_dicom_folder(DicomFolderSource.model_validate({"path": str(path), **options}))


def test_subfolders_give_labels_and_headers_the_rest(tmp_path: Path) -> None:
    items = listed(write_dicom_folder(tmp_path / "export"))
    assert [Path(item.uri).name for item in items] == ["IM0004.dcm", "IM0005.dcm", "IM0000.dcm", "IM0001.dcm", "IM0002.dcm", "IM0003.dcm"]
    assert [item.label for item in items] == [1, 1, 0, 0, 0, 0]
    assert [item.projection for item in items] == ["PA", "AP"] * 3
    assert {(item.site, item.dataset, item.excluded, item.split) for item in items} == {("CHEST", "export", None, None)}
    assert [item.spacing_um for item in items] == [pytest.approx(143)] * 6
    assert items[0].subject_id == items[1].subject_id
    assert len({item.subject_id for item in items}) == 3
    assert read_dicom(items[0].uri).max() > 150


def test_no_patients_name_id_or_birth_date_is_carried(tmp_path: Path) -> None:
    for item in listed(write_dicom_folder(tmp_path)):
        assert not any(name in str(asdict(item)) for name in ("Doe", "19500101", "'P0'", "'P1'", "'P2'"))


def test_a_salt_gives_other_pseudonyms_for_the_same_patients(tmp_path: Path) -> None:
    root = write_dicom_folder(tmp_path)
    plain, salted = ([item.subject_id for item in listed(root, salt=salt)] for salt in ("", "pepper"))
    assert not set(plain) & set(salted)
    assert [plain.index(subject) for subject in plain] == [salted.index(subject) for subject in salted]


def test_files_outside_both_subfolders_have_no_label(tmp_path: Path) -> None:
    write_dicom(tmp_path / "archive/deep/a.dcm", PIXELS)
    write_dicom(tmp_path / "archive/b.c.DICOM", PIXELS)
    assert {(item.label, item.subject_id) for item in listed(tmp_path)} == {
        (None, "archive/deep/a"),
        (None, "archive/b.c"),
    }  # no patient ID


def test_how_many_pictures_have_no_known_patient_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, patient in enumerate((None, "P", None)):
        write_dicom(tmp_path / f"normal/{number}.dcm", PIXELS, PatientID=patient)
    listed(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}: 2 picture(s) without a known person count as a person each"]


def test_a_picture_with_burned_in_text_is_held_back_unless_allowed(tmp_path: Path) -> None:
    for name, value in (("yes", "YES"), ("no", "NO"), ("unsaid", None)):
        write_dicom(tmp_path / f"normal/{name}.dcm", PIXELS, BurnedInAnnotation=value)
    assert {Path(item.uri).stem: item.excluded for item in listed(tmp_path)} == {"yes": "burned-in annotation", "no": None, "unsaid": None}
    assert not any(item.excluded for item in listed(tmp_path, burned_in="allow"))


def test_a_table_gives_label_finding_and_subject_and_its_gaps_come_from_the_header(tmp_path: Path) -> None:
    root = write_dicom_folder(tmp_path / "study")
    write_csv(
        root / "labels.csv",
        [
            {"uri": "normal/IM0001.dcm", "label": "0", "finding": "", "subject_id": "s1"},
            {"uri": "abnormal/IM0004.dcm", "label": "1", "finding": "nodule", "subject_id": ""},
            {"uri": "normal/IM0099.dcm", "label": "", "finding": "", "subject_id": "s9"},
        ],
    )
    first, second, absent, *others = listed(root / "labels.csv")
    assert (first.label, first.subject_id, first.finding, first.projection) == (0, "s1", None, "AP")
    assert (second.label, second.finding, second.dataset) == (1, "nodule", "labels")
    assert len(second.subject_id) == 16
    assert (absent.uri, absent.label, absent.excluded) == (str(root / "normal/IM0099.dcm"), None, None)
    assert {(item.excluded, item.label) for item in others} == {("no row in labels.csv", None)}
    assert len(others) == 4


def test_a_damaged_file_is_excluded_and_listed(tmp_path: Path) -> None:
    root = write_dicom_folder(tmp_path)
    (root / "normal/IM0000.dcm").write_bytes(b"no DICOM")
    items = {Path(item.uri).stem: item for item in listed(root)}
    assert (items["IM0000"].excluded, items["IM0000"].label) == ("unreadable DICOM file", 0)
    assert sum(item.excluded is not None for item in items.values()) == 1


def test_a_header_longer_than_what_is_read_first_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_headers, "_HEADER_BYTES", 700)
    write_dicom(tmp_path / "a.dcm", PIXELS, ImageComments="x" * 900, PatientID="P", BurnedInAnnotation="YES")
    (item,) = listed(tmp_path)
    assert item.excluded == "burned-in annotation"
    assert len(item.subject_id) == 16


def test_pixels_are_not_read_and_object_stores_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write_dicom_folder(tmp_path)
    store = fsspec.filesystem("memory")
    try:
        store.put(str(local), "/dicom-tests/export", recursive=True)
        monkeypatch.setattr(dicom_headers, "_HEADER_BYTES", 2048)
        monkeypatch.setattr(filesystems, "open_for_reading", lambda uri: pytest.fail(f"opened {uri} whole"))
        there, here = listed("memory://dicom-tests/export"), listed(local)
        assert [item.subject_id for item in there] == [item.subject_id for item in here]
        assert [item.label for item in there] == [item.label for item in here]
    finally:
        store.store.clear()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"uri": "a.dcm", "label": "yes"}], "line 2: a.dcm has label 'yes'"),
        ([{"uri": "", "label": "0"}], "line 2: a row has no uri"),
        ([{"uri": "a.dcm"}], r"expected the column\(s\) \['label'\]"),
    ],
)
def test_an_unusable_table_is_refused(tmp_path: Path, rows: list[dict[str, str]], told: str) -> None:
    with pytest.raises(SourceError, match=told):
        listed(write_csv(tmp_path / "labels.csv", rows))


def test_another_folder_is_refused_saying_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "normal").mkdir()
    with pytest.raises(SourceError, match=r"expected \*\.dcm, in normal/ and abnormal/"):
        listed(tmp_path)
    with pytest.raises(SourceError, match="nothing at"):
        listed(tmp_path / "absent")
