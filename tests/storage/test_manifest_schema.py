"""The rules of a manifest's columns, each by itself: what is taken, what is converted, and how an error names it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.manifest_schema import ARROW_TYPES, COLUMNS, SCHEMA, TEXT, ManifestError, validate_manifest

REQUIRED = [name for name, column in SCHEMA.items() if not column.nullable]
ACCEPTED: dict[str, list[Any]] = {
    "label": [0, 1, None],
    "split": ["train", "validation", "test", "archive", None],
    "level": [0, 1, 2**31 - 1],
    "x_px": [0, 7, 1 << 40],
    "spacing_um": [1e-9, 0.5, float("inf"), None],
    "tissue_share": [0.0, 0.5, 1.0, None],
    "abnormal_share": [0, 1, None],
    "brightness": [0.0, 1.0, None],
    "ita_deg": [-90, 0, 90.0, None],
    "phash": ["0123456789abcdef", None],
    "sharpness": [-1.0, 1e300, None],
    "flags": ["", "blurred;pen", None],
    "subject_id": ["a", " ", "ä"],
}
REFUSED = [
    *[("label", value, "must be 0 or 1") for value in (2, -1, 100)],
    *[("label", value, "must be Int8") for value in (0.5, "one", 300)],
    *[("split", value, "must be train, validation, test or archive") for value in ("", "Train", "holdout")],
    *[(name, -1, "must be at least 0") for name in ("level", "x_px", "y_px", "width_px", "height_px")],
    *[("x_px", value, "must be int64") for value in ("wide", "1.0", 1 << 70, float("inf"), [1])],
    *[("level", value, "must be int32") for value in (1 << 31, 1 << 40, "top")],
    *[("spacing_um", value, "must be above 0") for value in (0.0, -0.5)],
    *[("spacing_um", "fine", "must be float64")],
    *[(name, value, "must be from 0 to 1") for name in ("tissue_share", "abnormal_share", "brightness") for value in (-0.1, 1.5)],
    *[("ita_deg", value, "must be from -90 to 90") for value in (-90.5, 91.0)],
    *[("phash", value, "must be 16 hexadecimal digits") for value in ("", "0123456789ABCDEF", "0123456789abcde", "0123456789abcdef0")],
    *[("subject_id", "", "must not be empty")],
    *[(name, None, "must not be null") for name in REQUIRED],
]


def make_table(rows: int = 5) -> pd.DataFrame:
    """Rows of the required columns alone."""
    numbers = range(rows)
    names = {"sample_id": [f"s{number}" for number in numbers], "uri": [f"{number}.png" for number in numbers]}
    return pd.DataFrame(names | {"dataset": "photos", "subject_id": "p", "level": 0, "x_px": 0, "y_px": 0, "width_px": 64, "height_px": 32})


def put(table: pd.DataFrame, column: str, values: dict[int, Any]) -> pd.DataFrame:
    """The table with some values of a column replaced; the others stay, or are null where there was no such column."""
    held = table[column].astype(object).tolist() if column in table else [None] * len(table)
    for row, value in values.items():
        held[row] = value
    return table.assign(**{column: pd.Series(held, index=table.index, dtype=object)})


@pytest.mark.parametrize(("column", "value", "rule"), REFUSED)
def test_a_rule_that_is_broken_is_named_with_its_first_row_and_the_value(column: str, value: Any, rule: str) -> None:
    with pytest.raises(ManifestError) as refused:
        validate_manifest(put(make_table(), column, {2: value, 4: value}))
    shown = float(value) if isinstance(value, int) and ARROW_TYPES[column] == "double" else value
    assert str(refused.value) == f"not a valid manifest: row 2, column {column!r}: {shown!r} {rule}"


@pytest.mark.parametrize("column", ACCEPTED)
def test_values_that_keep_the_rules_stay_what_they_are(column: str) -> None:
    values = ACCEPTED[column]
    valid = validate_manifest(put(make_table(len(values)), column, dict(enumerate(values))))
    assert [None if pd.isna(value) else value for value in valid[column]] == values


def test_every_column_has_a_type_and_an_empty_table_has_them_all() -> None:
    for empty in (make_table(0), make_table(0).astype(object)):
        valid = validate_manifest(empty)
        assert tuple(valid.columns) == COLUMNS
        assert {name: valid[name].dtype for name in COLUMNS} == {name: column.kind for name, column in SCHEMA.items()}
        assert len(valid) == 0


def test_all_broken_rules_are_told_at_once_in_the_order_of_the_columns() -> None:
    table = make_table()
    bad: dict[str, dict[int, Any]] = {
        "sample_id": {0: "s4"},
        "subject_id": {1: None, 3: ""},
        "label": {2: 5, 3: 6},
        "x_px": {0: -3},
        "width_px": {1: None, 2: "wide"},
    }
    for column, values in bad.items():
        table = put(table, column, values)
    with pytest.raises(ManifestError) as refused:
        validate_manifest(table)
    assert str(refused.value).removeprefix("not a valid manifest: ").split("; ") == [
        "row 0, column 'sample_id': 's4' must be unique",
        "row 1, column 'subject_id': None must not be null",
        "row 3, column 'subject_id': '' must not be empty",
        "row 2, column 'label': 5 must be 0 or 1",
        "row 0, column 'x_px': -3 must be at least 0",
        "row 1, column 'width_px': None must not be null",
        "row 2, column 'width_px': 'wide' must be int64",
    ]


def test_rows_are_counted_from_the_top_whatever_the_index_is() -> None:
    table = put(make_table(), "x_px", {3: -1})
    for index in ([7, 8, 9, 10, 11], [1, 1, 1, 1, 1], list("edcba")):
        with pytest.raises(ManifestError, match="row 3, column 'x_px': -1"):
            validate_manifest(table.set_axis(index))
    assert validate_manifest(make_table().set_axis(list("edcba"))).index.equals(pd.RangeIndex(5))


def test_the_rule_of_a_column_is_checked_beside_its_nulls() -> None:
    with pytest.raises(ManifestError, match="row 0, column 'x_px': None must not be null; row 4, column 'x_px': -1 must be at least 0"):
        validate_manifest(put(make_table(), "x_px", {0: None, 4: -1}))


@pytest.mark.parametrize(
    ("column", "given", "held"),
    [
        ("x_px", [0.0, 1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3, 4]),
        ("x_px", ["0", "1", "2", "3", "4"], [0, 1, 2, 3, 4]),
        ("x_px", pd.array([0, 1, 2, 3, 4], "Int64"), [0, 1, 2, 3, 4]),
        ("level", np.arange(5, dtype=np.uint64), [0, 1, 2, 3, 4]),
        ("label", [0.0, 1.0, np.nan, 1.0, 0.0], [0, 1, None, 1, 0]),
        ("label", [True, False, None, True, False], [1, 0, None, 1, 0]),
        ("spacing_um", ["0.5", None, "1", 2, 0.25], [0.5, None, 1.0, 2.0, 0.25]),
        ("subject_id", [1, 2, 3, 4, 5], ["1", "2", "3", "4", "5"]),
        ("split", pd.Categorical(["train", None, "test", "test", "train"]), ["train", None, "test", "test", "train"]),
        ("finding", pd.array(["a", None, "b", "", "c"], "string[python]"), ["a", None, "b", "", "c"]),
    ],
)
def test_values_of_another_type_are_converted(column: str, given: Any, held: list[Any]) -> None:
    valid = validate_manifest(make_table().assign(**{column: given}))
    assert valid[column].dtype == SCHEMA[column].kind
    assert [None if pd.isna(value) else value for value in valid[column]] == held


@pytest.mark.parametrize(("column", "number"), [("level", 1 << 31), ("level", (1 << 32) + 1), ("label", 257), ("x_px", 1 << 63)])
def test_a_number_too_large_for_its_column_is_refused_and_not_taken_modulo(column: str, number: int) -> None:
    numbers = np.zeros(5, np.uint64 if number >> 63 else np.int64)
    numbers[3] = number
    with pytest.raises(ManifestError, match=f"row 3, column '{column}': {number} must be"):
        validate_manifest(make_table().assign(**{column: numbers}))


def test_a_column_that_is_there_twice_is_refused_by_name() -> None:
    table = make_table()
    with pytest.raises(ManifestError, match=r"there twice: \['uri'\]"):
        validate_manifest(pd.concat([table, table[["uri"]]], axis=1))


def test_the_given_table_stays_as_it_is() -> None:
    table = make_table().assign(level=np.zeros(5), label=[0, 1, 0, 1, 0])
    before = table.copy(deep=True)
    valid = validate_manifest(table)
    valid["level"], valid.loc[0, "uri"] = 1, "other"
    pd.testing.assert_frame_equal(table, before)


@settings(deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.floats(-2, 3), st.integers(-2, 3)), max_size=30),
    column=st.sampled_from(["tissue_share", "spacing_um", "ita_deg"]),
)
def test_the_first_number_out_of_range_is_found_wherever_it_stands(values: list[float | None], column: str) -> None:
    is_kept = {"tissue_share": lambda x: 0 <= x <= 1, "spacing_um": lambda x: x > 0, "ita_deg": lambda x: -90 <= x <= 90}[column]
    table = put(make_table(len(values)), column, dict(enumerate(values)))
    bad = [row for row, value in enumerate(values) if value is not None and not is_kept(value)]
    if not bad:
        assert validate_manifest(table)[column].dtype == np.float64
    else:
        with pytest.raises(ManifestError, match=rf"^not a valid manifest: row {bad[0]}, column '{column}': [^;]*$"):
            validate_manifest(table)


@settings(deadline=None)
@given(ids=st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=2)), max_size=20))
def test_the_first_id_that_is_not_the_only_one_is_found(ids: list[str | None]) -> None:
    table = make_table(len(ids)).assign(sample_id=pd.Series(ids, dtype=TEXT))
    expected = []
    if None in ids:
        expected.append(f"row {ids.index(None)}, column 'sample_id': None must not be null")
    if twice := [row for row, name in enumerate(ids) if name is not None and ids.count(name) > 1]:
        expected.append(f"row {twice[0]}, column 'sample_id': {ids[twice[0]]!r} must be unique")
    if expected:
        with pytest.raises(ManifestError) as refused:
            validate_manifest(table)
        assert str(refused.value) == "not a valid manifest: " + "; ".join(expected)
    else:
        assert validate_manifest(table)["sample_id"].tolist() == ids
