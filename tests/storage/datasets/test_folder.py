"""A user's own pictures: subfolders or a CSV, and what is wrong with them said clearly."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from storage.datasets.folder import FolderSource, list_folder
from storage.datasets.source import SourceError


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
        ("a.png", 0, "a"),
        ("b.JPG", 0, "b"),
        ("c.tif", 1, "c"),
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
        "s3://archive/c.png,,unknown,,,",
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
    assert (third.uri, third.subject_id, third.label, third.split) == ("s3://archive/c.png", "c", None, None)


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
