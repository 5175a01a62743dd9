from itertools import pairwise, product
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.curation.leaks import Leak, check_splits
from methods.curation.split_config import SplitError
from tests.cohorts import SPLITS, calm


def manifest(**columns: list[Any]) -> pd.DataFrame:
    rows = len(columns["split"])
    table = {"sample_id": [f"s{i}" for i in range(rows)], "subject_id": [f"p{i}" for i in range(rows)], "dataset": "d"}
    return pd.DataFrame(table | columns)


def test_each_kind_of_leak_is_found_with_its_rows() -> None:
    split = ["train", "test", "validation", "train", "test"]
    assert check_splits(manifest(split=split, subject_id=["a", "b", "c", "d", "a"])) == [
        Leak("subject", "d/a", ("test", "train"), (0, 4), ("s0", "s4"))
    ]
    for kind, column in (("lesion", "lesion_id"), ("slide", "slide_id")):
        leaks = check_splits(manifest(split=split, **{column: [None, "x", "x", "x", None]}))
        assert leaks == [Leak(kind, "d/x", ("test", "train", "validation"), (1, 2, 3), ("s1", "s2", "s3"))]  # type: ignore[arg-type]
    for kind, column in (("duplicate", "duplicate_group"), ("group", "group_id")):
        assert check_splits(manifest(split=split, **{column: [7, 8, 8, 9, None]})) == [
            Leak(kind, "8.0", ("test", "validation"), (1, 2), ("s1", "s2"))  # type: ignore[arg-type]
        ]
    assert str(check_splits(manifest(split=split, group_id=list("abcda")))[0]) == "group 'a' is in test and train (2 rows, first 0)"


def test_the_same_pixels_leak_and_other_windows_of_the_same_file_do_not() -> None:
    table = manifest(split=["train", "test", "test"], sha256=["ab" * 32] * 3, x_px=[0, 0, 64], width_px=[64, 64, 64], frame=[None] * 3)
    assert [(leak.kind, leak.key, leak.rows) for leak in check_splits(table)] == [("duplicate", f"{'ab' * 8}… (0, 64)", (0, 1))]
    assert check_splits(table.iloc[1:]) == []
    table["frame"] = ["images:1", "images:2", "images:2"]
    assert check_splits(table) == []


def test_ids_hold_within_a_data_set_unless_told_otherwise() -> None:
    table = manifest(split=["train", "test"], subject_id=["1", "1"], dataset=["a", "b"])
    assert check_splits(table) == []
    assert [leak.key for leak in check_splits(table, across_datasets=True)] == ["1"]


def test_excluded_rows_and_rows_without_split_leak_nothing() -> None:
    table = manifest(split=["train", "test", None, "test"], subject_id=["a", "a", "a", "b"], excluded=[None, "blurred", None, None])
    assert check_splits(table) == []
    table.loc[2, "subject_id"] = None
    assert check_splits(table) == []
    table.loc[3, "subject_id"] = None
    with pytest.raises(SplitError, match="row 3 has no subject_id"):
        check_splits(table)


def test_a_table_without_the_column_that_would_prove_it_is_refused() -> None:
    with pytest.raises(SplitError, match="subject_id is missing"):
        check_splits(pd.DataFrame({"split": ["train"]}))


@calm
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.sampled_from(["d", "e", None]), st.sampled_from([None, "x", "y"]), st.sampled_from([*SPLITS, None])
        ),
        max_size=30,
    )
)
def test_leaks_are_those_that_comparing_every_pair_finds(rows: list[tuple[str, str | None, str | None, str | None]]) -> None:
    table = pd.DataFrame(rows, columns=["subject_id", "dataset", "lesion_id", "split"], dtype=object)
    leaking: dict[str, set[int]] = {"subject": set(), "lesion": set()}
    for (i, one), (j, other) in product(enumerate(rows), repeat=2):
        if one[3] is not None and other[3] is not None and one[3] != other[3] and one[1] == other[1]:
            leaking["subject"] |= {i, j} if one[0] == other[0] else set()
            leaking["lesion"] |= {i, j} if one[2] == other[2] and one[2] is not None else set()
    leaks = check_splits(table)
    for kind, expected in leaking.items():
        found = [set(leak.rows) for leak in leaks if leak.kind == kind]
        assert set().union(*found) == {  # a leak also lists the rows that share a split with another of it
            i for i, row in enumerate(rows) if row[3] is not None and any(_same(row, rows[j], kind) for j in expected)
        }
        assert all(one.isdisjoint(other) for one, other in pairwise(found))


def _same(one: tuple[Any, ...], other: tuple[Any, ...], kind: str) -> bool:
    column = 0 if kind == "subject" else 2
    return one[column] is not None and (one[column], one[1]) == (other[column], other[1])


def test_what_crosses_is_sorted_and_nothing_leaks_from_an_empty_table() -> None:
    table = pd.DataFrame({"subject_id": ["b", "a", "b", "c", "a"], "split": ["train", "test", "test", "train", "train"]})
    assert [leak.key for leak in check_splits(table)] == ["a", "b"]
    assert check_splits(table[:0]) == []
