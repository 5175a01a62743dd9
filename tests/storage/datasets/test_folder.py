"""A user's own pictures: subfolders or a CSV, and what is wrong with them said clearly."""

import logging
from pathlib import Path

import fsspec
import numpy as np
import pytest
from pydantic import ValidationError

from storage.datasets.folder import FolderSource, list_folder
from storage.datasets.miniatures.radiology import write_dicom
from storage.datasets.source import SourceError, SourceItem


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def _table(root: Path, *lines: str) -> FolderSource:
    root.mkdir(exist_ok=True)
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return FolderSource(path=str(root / "table.csv"))


def test_subfolders_give_labels_and_masks_by_name(tmp_path: Path) -> None:
    root = _touch(tmp_path / "skin", "normal/a.png", "normal/deep/b.JPG", "abnormal/c.tif", "masks/c.png", "normal/readme.txt")
    items = list_folder(FolderSource(path=str(root)))
    assert [(Path(item.uri).name, item.label, item.subject_id) for item in items] == [
        ("a.png", 0, "normal/a"),
        ("b.JPG", 0, "normal/deep/b"),
        ("c.tif", 1, "abnormal/c"),
    ]
    assert [item.mask_uri for item in items] == [None, None, str(root / "masks/c.png")]
    assert {item.dataset for item in items} == {"skin"}


def test_a_data_set_of_one_class_is_listed(tmp_path: Path) -> None:
    root = _touch(tmp_path, "normal/a.png")
    assert [item.label for item in list_folder(FolderSource(path=str(root), dataset="named"))] == [0]


def test_the_folder_itself_as_normal_does_not_swallow_masks_and_abnormal(tmp_path: Path) -> None:
    root = _touch(tmp_path, "a.png", "sub/b.png", "abnormal/c.png", "masks/c.png", "masks_of_others/d.png")
    items = list_folder(FolderSource(path=f"{root}/", normal="."))
    assert [(Path(item.uri).name, item.label) for item in items] == [("a.png", 0), ("d.png", 0), ("b.png", 0), ("c.png", 1)]


def test_a_csv_names_files_beside_it_anywhere_and_in_a_store(tmp_path: Path) -> None:
    source = _table(
        tmp_path / "study",
        "uri,subject_id,label,mask_uri,split,spacing_um",
        "pictures/a.png,p1,0,,train,0.5",
        "/data/b.svs,p2,1,masks/b.png,test,",
        "s3://archive/c.png,p3,unknown,,,",
    )
    first, second, third = list_folder(source)
    assert (first.uri, first.subject_id, first.label, first.split, first.spacing_um) == (
        str(tmp_path / "study/pictures/a.png"),
        "p1",
        0,
        "train",
        0.5,
    )
    assert (second.uri, second.label, second.mask_uri) == ("/data/b.svs", 1, str(tmp_path / "study/masks/b.png"))
    assert (third.uri, third.subject_id, third.label, third.split) == ("s3://archive/c.png", "p3", None, None)


def _subjects(source: FolderSource) -> list[str]:
    return [item.subject_id for item in list_folder(source)]


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# ---- persons


def test_files_of_one_name_in_different_folders_are_different_persons(tmp_path: Path) -> None:
    root = _touch(tmp_path / "skin", "normal/s0/i0.png", "normal/s1/i0.png", "normal/i0.png", "abnormal/i0.png")
    assert _subjects(FolderSource(path=str(root))) == ["normal/i0", "normal/s0/i0", "normal/s1/i0", "abnormal/i0"]
    table = _table(tmp_path, "uri", "img/p0/000.png", "img/p5/000.png", "/elsewhere/000.png", "s3://archive/000.png", "000.png")
    assert _subjects(table) == ["img/p0/000", "img/p5/000", "/elsewhere/000", "s3://archive/000", "000"]


def test_persons_of_a_flat_folder_are_called_by_the_names_of_their_files(tmp_path: Path) -> None:
    root = _touch(tmp_path, "a.png", "b.1.png", "abnormal/a.png")
    assert _subjects(FolderSource(path=f"{root}/", normal=".")) == ["a", "b.1", "abnormal/a"]


def test_an_empty_subject_in_a_column_of_subjects_is_refused_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    told = r"table\.csv, line 3: subject_id is empty \(2 such row\(s\)\): fill it, or leave the column out"
    with pytest.raises(SourceError, match=told):
        list_folder(_table(tmp_path, "uri,subject_id", "a.png,p1", "b.png,", "c.png,p1", "d.png,n/a"))


def test_how_many_pictures_have_no_known_person_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _touch(tmp_path, "normal/a.png", "normal/b.png")
    list_folder(FolderSource(path=str(root)))
    list_folder(_table(tmp_path, "uri,label", "c.png,0"))
    list_folder(_table(tmp_path, "uri,subject_id", "c.png,p1"))
    assert _warnings(caplog) == [
        f"{root}: 2 picture(s) without a known person count as a person each",
        f"{root}/table.csv: 1 picture(s) without a known person count as a person each",
    ]


# ---- DICOM


def _radiographs(root: Path) -> None:
    pixels = np.zeros((8, 8), np.uint16)
    write_dicom(root / "normal/a.dcm", pixels, PatientID="P0", PixelSpacing=[0.2, 0.2], BodyPartExamined="HAND", ViewPosition="PA")
    write_dicom(root / "normal/b.dcm", pixels, PatientID="P0", BurnedInAnnotation="YES")
    write_dicom(root / "normal/c.dcm", pixels)
    (root / "normal/d.dcm").write_bytes(b"no DICOM")
    _touch(root, "normal/e.png")


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_headers_of_dicom_files_give_patient_and_spacing_and_hold_burned_in_text_back(tmp_path: Path, kind: str) -> None:
    _radiographs(tmp_path)
    path = tmp_path
    if kind == "table":
        path = tmp_path / "table.csv"
        _table(tmp_path, "uri,label", *(f"normal/{name},0" for name in ("a.dcm", "b.dcm", "c.dcm", "d.dcm", "e.png")))

    def listed(**options: str) -> list[SourceItem]:
        return list_folder(FolderSource.model_validate({"path": str(path), **options}))

    items = listed()
    assert [item.excluded for item in items] == [None, "burned-in annotation", None, "unreadable DICOM file", None]
    assert [item.subject_id for item in items[2:]] == ["normal/c", "normal/d", "normal/e"]
    assert items[0].subject_id == items[1].subject_id
    assert len(items[0].subject_id) == 16
    assert (items[0].spacing_um, items[0].site, items[0].projection) == (pytest.approx(200), "HAND", "PA")
    assert [item.excluded for item in listed(burned_in="allow")] == [None, None, None, "unreadable DICOM file", None]
    assert listed(salt="pepper")[0].subject_id not in (items[0].subject_id, "P0")


def test_what_a_table_says_of_a_dicom_file_counts_before_its_header_which_fills_the_gaps(tmp_path: Path) -> None:
    _radiographs(tmp_path)
    source = _table(
        tmp_path, "uri,subject_id,spacing_um,site,projection", "normal/a.dcm,ann,5,FOOT,AP", "normal/a.dcm,,,,", "normal/gone.dcm,,,,"
    )
    told, found, _ = list_folder(source)
    assert (told.subject_id, told.spacing_um, told.site, told.projection) == ("ann", 5, "FOOT", "AP")
    assert (len(found.subject_id), found.spacing_um, found.site, found.projection) == (16, pytest.approx(200), "HAND", "PA")
    with pytest.raises(SourceError, match=r"line 3: subject_id is empty \(1 such row"):
        list_folder(_table(tmp_path, "uri,subject_id", "normal/a.dcm,", "normal/c.dcm,"))


# ---- tables


def test_a_csv_of_a_spreadsheet_with_semicolons_or_tabs_is_read(tmp_path: Path) -> None:
    for separator in (";", "\t"):
        lines = ("uri,label,finding,,", '"a.png",1,"one, or two",,', ",,,,", "b.png,0,,,")
        first, second = list_folder(
            _table(tmp_path, *(line.replace("one,", "one|").replace(",", separator).replace("one|", "one,") for line in lines))
        )
        assert (first.uri, first.label, first.finding) == (str(tmp_path / "a.png"), 1, "one, or two")
        assert (second.uri, second.label) == (str(tmp_path / "b.png"), 0)


def test_pictures_beside_those_listed_that_have_no_row_are_counted_with_an_example(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _touch(tmp_path, "img/a.png", "img/a-mask.png", "img/forgotten.png", "img/lost.jpg", "img/notes.txt", "img/deep/c.png", "other/d.png")
    items = list_folder(_table(tmp_path, "uri,subject_id,label,mask_uri", "./img/a.png,p,1,img/a-mask.png"))
    assert [item.uri for item in items] == [str(tmp_path / "img/a.png")]
    assert _warnings(caplog) == [
        f"{tmp_path}/table.csv: 2 picture(s) beside those listed have no row and are not used, such as {tmp_path}/img/forgotten.png"
    ]


def test_pictures_without_a_row_are_counted_in_an_object_store_too(caplog: pytest.LogCaptureFixture) -> None:
    store = fsspec.filesystem("memory")
    try:
        for name in ("img/a.png", "img/b.png", "img/deep/c.png", "img/deeper/d.png", "else/e.png"):
            store.pipe(f"/folder-tests/{name}", b"")
        store.pipe("/folder-tests/t.csv", b"uri,subject_id\nimg/a.png,p\nimg/deep/c.png,p\n")
        list_folder(FolderSource(path="memory://folder-tests/t.csv"))
        assert [text.partition("t.csv: ")[2] for text in _warnings(caplog)] == [
            "1 picture(s) beside those listed have no row and are not used, such as memory://folder-tests/img/b.png"
        ]
    finally:
        store.store.clear()


def test_a_mask_without_a_picture_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _touch(tmp_path, "abnormal/a.png", "masks/a.png", "masks/b.png", "masks/c.png")
    list_folder(FolderSource(path=str(root)))
    assert _warnings(caplog)[-1] == f"{root}: 2 mask(s) are named like no picture and are not used, such as {root}/masks/b.png"


def test_a_mask_is_that_of_the_abnormal_picture_of_its_name_and_of_no_other(tmp_path: Path) -> None:
    root = _touch(tmp_path, "normal/a.png", "abnormal/a.png", "normal/b.png", "masks/a.png", "masks/b.png")
    items = list_folder(FolderSource(path=str(root)))
    given = {item.uri: item.mask_uri for item in items if item.mask_uri is not None}
    assert given == {f"{root}/abnormal/a.png": f"{root}/masks/a.png", f"{root}/normal/b.png": f"{root}/masks/b.png"}


def test_a_mask_that_two_pictures_are_named_like_is_refused(tmp_path: Path) -> None:
    root = _touch(tmp_path, "abnormal/p1/a.png", "abnormal/p2/a.png", "masks/a.png")
    with pytest.raises(SourceError, match=r"masks/a.png may be the mask of .*p1/a.png or of .*p2/a.png: rename one"):
        list_folder(FolderSource(path=str(root)))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"uri,finding\na.png,\nb.png,n\xe6vus\n", "line 3: not UTF-8; save the table as UTF-8"),
        (b"", "is empty: expected a line of column names"),
        (b"\n\n", "is empty: expected a line of column names"),
        (b"uri,label\n", "has column names and no row: add"),
        (b"uri,label\na.png,0\nb.png,0,0\n", "line 3: 3 cells, but the header names 2 columns; put quotes"),
        (b"uri,label\na.png,0,0\nb.png,0,0\n", "line 2: 3 cells, but the header names 2 columns; put quotes"),
        (b'uri,label\na.png,0\n"b.png,0\nc.png,1\n', "line 3: unexpected end of data; is a quote not closed"),
        (b"uri,label,uri\na.png,0,b.png\n", "the column 'uri' is there twice; keep one"),
        (b'uri,finding\n"a.png","two\nlines"\n\nb.png,x,y\n', "line 5: 3 cells"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_name_with_its_line_and_what_to_do(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(SourceError) as raised:
        list_folder(FolderSource(path=str(tmp_path / "table.csv")))
    assert str(raised.value).startswith(str(tmp_path / "table.csv"))
    assert told in str(raised.value)


def test_a_csv_with_an_unknown_column_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"unknown columns \['lable'\]"):
        list_folder(_table(tmp_path, "uri,lable", "a.png,0"))


def test_a_csv_without_uris_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="column uri is missing"):
        list_folder(_table(tmp_path, "label", "0"))


@pytest.mark.parametrize(
    ("header", "bad", "told"),
    [
        ("label", "yes", "label is 'yes'"),
        ("split", "holdout", "split is 'holdout'"),
        ("spacing_um", "wide", "spacing_um is 'wide'"),
        ("spacing_um", "-0.5", "spacing_um is '-0.5'"),
        ("spacing_um", "inf", "spacing_um is 'inf'"),
    ],
)
def test_a_bad_value_in_a_csv_is_refused_with_its_line(tmp_path: Path, header: str, bad: str, told: str) -> None:
    with pytest.raises(SourceError, match=f"line 3: {told}"):
        list_folder(_table(tmp_path, f"uri,{header}", "a.png,", f"b.png,{bad}"))


def test_a_csv_row_without_a_uri_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="line 3: uri is empty"):
        list_folder(_table(tmp_path, "uri,label", "a.png,0", ",0"))


def test_a_csv_row_with_too_few_fields_reads_as_unknown(tmp_path: Path) -> None:
    (item,) = list_folder(_table(tmp_path, "uri,label,split", "a.png,0"))
    assert (item.label, item.split) == (0, None)


@pytest.mark.parametrize("names", [(), ("normal/readme.txt",), ("elsewhere/a.png",)])
def test_a_folder_without_pictures_is_refused_saying_what_is_expected(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(SourceError, match=r"no pictures in .* expected normal/ and abnormal/"):
        list_folder(FolderSource(path=str(_touch(tmp_path, *names))))


def test_two_masks_of_one_name_are_refused_naming_both(tmp_path: Path) -> None:
    root = _touch(tmp_path, "abnormal/a.png", "masks/a.png", "masks/a.tif")
    with pytest.raises(SourceError, match=r"a\.png and .*a\.tif"):
        list_folder(FolderSource(path=str(root)))


def test_nothing_at_the_path_is_refused_naming_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing at .*absent"):
        list_folder(FolderSource(path=str(tmp_path / "absent")))


def test_a_source_forbids_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="abnormals"):
        FolderSource.model_validate({"path": ".", "abnormals": "x"})
