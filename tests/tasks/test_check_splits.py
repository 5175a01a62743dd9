"""Tables of splits as they come, ours and others': what crosses is found whatever they call and write it, and named so that it is found."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from methods.curation.split_config import SplitError
from storage import manifest as manifests
from storage.datasets.source import SourceError
from storage.manifest import write_manifest
from tasks import check_splits
from tasks.check_splits import describe_leaks

SPLITS = ("train", "train", "validation", "test")


def manifest_rows() -> pd.DataFrame:
    """Two pictures of each of four persons."""
    rows = [
        {
            "sample_id": f"{number:032x}",
            "uri": f"{number}.png",
            "sha256": f"{number:064x}",
            "dataset": "d",
            "subject_id": f"s{number // 2}",
            "group_id": f"d/s{number // 2}",
            "label": 0,
            "split": SPLITS[number // 2],
            **{"level": 0, "x_px": 0, "y_px": 0, "width_px": 64, "height_px": 64},
        }
        for number in range(8)
    ]
    return pd.DataFrame(rows)


def write(table: pd.DataFrame, path: Path) -> str:
    table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path, index=False)
    return str(path)


def written(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_our_manifests_are_proved_clean_and_a_moved_row_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, uri = manifest_rows(), str(tmp_path / "m.parquet")
    monkeypatch.setattr(check_splits, "_clean", lambda table: pytest.fail("a manifest was cleaned, which takes long"))
    write_manifest(uri, rows)
    assert describe_leaks(uri) == (
        "8 rows (train 4, validation 2, test 2); checked: subject, lesion, slide, duplicate, group: none is in more than one split",
        [],
    )
    rows.loc[1, "split"] = "test"
    write_manifest(uri, rows)
    summary, leaks = describe_leaks(uri)
    assert "2 in more than one split" in summary
    places = f"(2 rows; test: {1:032x}, row 1; train: {0:032x}, row 0)"
    assert leaks == [f"subject 'd/s0' is in test and train {places}", f"group 'd/s0' is in test and train {places}"]


def test_of_a_table_only_the_columns_that_are_checked_are_read(tmp_path: Path) -> None:
    uri = write(manifest_rows().assign(age=40), tmp_path / "m.parquet")
    table, lines = check_splits._read_table(uri, {})
    assert "age" not in table.columns
    assert "label" not in table.columns
    assert lines is None


@pytest.mark.parametrize("name", ["foreign.parquet", "foreign.csv"])
def test_a_foreign_table_is_checked_by_what_it_has(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame(
        {
            "image": ["a", "b", "c", "d"],
            "subject_id": ["1", "2", "1", "3"],
            "lesion_id": ["x", "y", "z", "y"],
            "split": ["train", "train", "test", "test"],
        }
    )
    summary, leaks = describe_leaks(write(table, tmp_path / name))
    assert "checked: subject, lesion: 2 in more than one split" in summary
    places = ("row 2", "row 0", "row 3", "row 1") if name.endswith("parquet") else ("line 4", "line 2", "line 5", "line 3")
    assert leaks == [
        f"subject '1' is in test and train (2 rows; test: {places[0]}; train: {places[1]})",
        f"lesion 'y' is in test and train (2 rows; test: {places[2]}; train: {places[3]})",
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({"uri": ["a.png", "a.png"]}, "a.png"),
        ({"uri": ["a.png", "a.png"], "frame": ["x:1", "x:1"], "x_px": [64, 64]}, "a.png (x:1, 64)"),
        ({"sample_id": ["a", "a"]}, "a"),
        ({"sha256": ["AB" * 32, "ab" * 32]}, f"{'ab' * 8}…"),
        ({"sha256": ["AB" * 32, f" {'ab' * 32}"], "uri": ["a.png", " a.png"], "sample_id": ["1 ", "1"]}, f"{'ab' * 8}…"),
    ],
)
def test_the_same_file_sample_or_content_in_two_splits_is_one_duplicate(
    tmp_path: Path, suffix: str, columns: dict[str, list[Any]], key: str
) -> None:
    uri = write(pd.DataFrame({"subject_id": ["1", "2"], "split": ["train", "test"], **columns}), tmp_path / f"t{suffix}")
    [leak] = describe_leaks(uri)[1]
    assert leak.startswith(f"duplicate {key!r} is in test and train (2 rows; test: ")


def test_other_frames_and_boxes_of_one_file_are_no_duplicates(tmp_path: Path) -> None:
    table = pd.DataFrame({"subject_id": ["1", "2"], "split": ["train", "test"], "uri": "a.npz", "sha256": "ab" * 32})
    for column, values in (("frame", ["x:1", "x:2"]), ("x_px", [0, 64])):
        assert describe_leaks(write(table.assign(**{column: values}), tmp_path / "t.csv"))[1] == []


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_blanks_and_the_case_of_splits_do_not_hide_a_leak_or_make_one(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"subject_id": ["p1", " p1 ", "p2", "p2"], "split": ["train", "test", "Train ", "train"]})
    summary, leaks = describe_leaks(write(table, tmp_path / f"t{suffix}"))
    assert [leak.split(" (")[0] for leak in leaks] == ["subject 'p1' is in test and train"]
    assert summary.startswith("4 rows (train 3, test 1)")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("unknown", ["NA", "nan", "", " ", "unknown"])
def test_cells_that_mean_unknown_are_no_ids(tmp_path: Path, suffix: str, unknown: str) -> None:
    table = pd.DataFrame(
        {"subject_id": ["1", "2", unknown], "lesion_id": [unknown] * 3, "uri": [unknown] * 3, "split": ["train", "test", unknown]}
    )
    assert describe_leaks(write(table, tmp_path / f"t{suffix}"))[1] == []
    table["split"] = ["train", "test", "test"]
    with pytest.raises(SplitError, match=r"(row 2|line 4): no subject_id \(1 such row\(s\)\); give each its person"):
        describe_leaks(write(table, tmp_path / f"t{suffix}"))


def test_rows_with_a_reason_in_excluded_leak_nothing_and_those_that_say_false_do(tmp_path: Path) -> None:
    for excluded, leaks in (("blurred", 0), ("", 1), ("False", 1), ("0", 1)):
        uri = written(tmp_path / "t.csv", "subject_id,split,excluded", f"1,train,{excluded}", "1,test,", "2,train,")
        assert len(describe_leaks(uri)[1]) == leaks
    for values, leaks in (([False, False], 1), ([True, False], 0)):
        table = pd.DataFrame({"subject_id": ["1", "1"], "split": ["train", "test"], "excluded": values})
        assert len(describe_leaks(write(table, tmp_path / "t.parquet"))[1]) == leaks


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ";"), ("t.tsv", "\t"), ("t.txt", ",")])
def test_tables_of_text_are_read_whatever_separates_their_cells(tmp_path: Path, name: str, separator: str) -> None:
    lines = ("subject_id,uri,split", "1,a.png,train", "", "1,b.png,test")
    uri = written(tmp_path / name, *(line.replace(",", separator) for line in lines))
    assert describe_leaks(uri)[1] == ["subject '1' is in test and train (2 rows; test: b.png, line 4; train: a.png, line 2)"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_columns_that_are_called_otherwise_are_told(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"patient": ["1", "1"], "fold": ["a", "b"], "subject_id": ["x", "y"], "lesion": ["l", "m"], "split": "train"})
    uri = write(table, tmp_path / f"t{suffix}")
    summary, leaks = describe_leaks(uri, called={"subject_id": "patient", "split": "fold", "lesion_id": "lesion"})
    assert [leak.split(" (")[0] for leak in leaks] == ["subject '1' is in a and b"]
    assert "checked: subject, lesion: " in summary
    assert describe_leaks(uri)[1] == []
    with pytest.raises(SplitError, match=r"has no column 'person' for subject_id; its columns are patient, fold"):
        describe_leaks(uri, called={"subject_id": "person"})


def test_the_same_id_in_two_data_sets_is_a_leak_only_when_told_so(tmp_path: Path) -> None:
    uri = write(pd.DataFrame({"dataset": ["a", "b"], "subject_id": ["1", "1"], "split": ["train", "test"]}), tmp_path / "t.csv")
    assert describe_leaks(uri)[1] == []
    assert len(describe_leaks(uri, across_datasets=True)[1]) == 1


def test_a_table_that_cannot_prove_anything_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"subject_id is missing among patient, split\. Say which they are with --split and --subject"):
        describe_leaks(written(tmp_path / "t.csv", "patient,split", "1,train"))
    with pytest.raises(SplitError, match=r"no row is in a split \(of 1\), so nothing can be proved"):
        describe_leaks(written(tmp_path / "t.csv", "subject_id,split", "1,"))
    for content, told in ((b"", "is empty"), (b"subject_id,split\n\xe9,train\n", "line 2: not UTF-8"), (b"PAR1 torn", "no readable table")):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(SourceError, match=f"bad.*{told}"):
            describe_leaks(str(tmp_path / "bad"))


def test_a_manifest_of_another_schema_is_read_as_a_foreign_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, uri = manifest_rows(), str(tmp_path / "m.parquet")
    rows.loc[1, "split"] = "test"
    monkeypatch.setattr(manifests, "SCHEMA_VERSION", manifests.SCHEMA_VERSION + 1)
    write_manifest(uri, rows)
    monkeypatch.undo()
    assert len(describe_leaks(uri)[1]) == 2
