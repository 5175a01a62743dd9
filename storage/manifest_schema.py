"""What a manifest's columns are: the type of each, whether it may be null, and the rule that its values keep."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as arrow
from pyarrow import compute

TEXT = pd.StringDtype(na_value=np.nan)
_NOT_COERCIBLE = (ValueError, TypeError, OverflowError)


class ManifestError(ValueError):
    """A table that is no manifest; the message names row and column."""


@dataclass(frozen=True)
class Rule:
    """What each value that is not null must be, in words and as (n,) bool of an array of them."""

    text: str
    is_kept: Callable[[arrow.Array], arrow.Array]


@dataclass(frozen=True)
class Column:
    """One column; `values` (n,) are of the pandas dtype `kind`."""

    kind: Any
    nullable: bool = True
    unique: bool = False
    rule: Rule | None = None

    @property
    def arrow_type(self) -> arrow.DataType:
        """The same type in Arrow."""
        return arrow.large_string() if self.kind == TEXT else arrow.type_for_alias(str(self.kind).lower())

    def coerce(self, values: pd.Series) -> pd.Series:
        """The values in this column's type, as pandas converts them, and the same where they are of it.

        Raises:
            ValueError, TypeError, OverflowError: some cannot be converted.
        """
        if values.dtype == self.kind:
            return values
        if isinstance(self.kind, np.dtype) and self.kind.kind == "i" and pd.api.types.is_numeric_dtype(values) and len(values):
            least, most = np.iinfo(self.kind).min, np.iinfo(self.kind).max
            if values.min() < least or values.max() > most:  # pandas would take such numbers modulo 2^n
                raise OverflowError(f"expected numbers from {least} to {most}")
        return values.astype(self.kind)

    def nothing(self, rows: int) -> pd.Series:
        """(rows,) null."""
        nulls: pd.Series = arrow.nulls(rows, self.arrow_type).to_pandas(types_mapper={self.arrow_type: self.kind}.get)
        return nulls

    def find_broken(self, values: pd.Series) -> Iterator[tuple[Any, Any, str]]:
        """Of each rule that values of this column's type break: the first bad row, its value, and the rule."""
        array = arrow.array(values, from_pandas=True)
        if not self.nullable and array.null_count:
            yield values.index[compute.index(compute.is_null(array), True).as_py()], None, "must not be null"
        if self.unique and not _is_unique(array):
            first = int((values.duplicated(keep=False) & values.notna()).to_numpy().argmax())
            yield values.index[first], array[first].as_py(), "must be unique"
        if self.rule is not None:
            first = compute.index(self.rule.is_kept(array), False).as_py()
            if first >= 0:
                yield values.index[first], array[first].as_py(), self.rule.text

    def find_uncoercible(self, values: pd.Series) -> Iterator[tuple[Any, Any, str]]:
        """As `find_broken`, of values that are not all of a type that can be converted."""
        there = values[values.notna()]
        if not self.nullable and len(there) < len(values):
            yield values.index[int(values.isna().to_numpy().argmax())], None, "must not be null"
        if self._is_coercible(there):
            yield from self.find_broken(self.coerce(there))
        else:
            first = bisect_left(range(len(there)), True, key=lambda row: not self._is_coercible(there.iloc[: row + 1]))
            value = there.iloc[first]
            yield there.index[first], value.item() if isinstance(value, np.generic) else value, f"must be {self.kind}"

    def _is_coercible(self, values: pd.Series) -> bool:
        try:
            self.coerce(values)
        except _NOT_COERCIBLE:
            return False
        return True


def _is_unique(array: arrow.Array) -> bool:
    """Whether no value that is not null is there twice; Arrow's own count of distinct values takes three times the memory."""
    places = compute.fill_null(compute.index_in(array, value_set=array, skip_nulls=True), -1).to_numpy(zero_copy_only=False)
    there = np.flatnonzero(places >= 0)
    return bool((places[there] == there).all())


def _text(*, nullable: bool = True, unique: bool = False, rule: Rule | None = None) -> Column:
    return Column(TEXT, nullable, unique, rule)


def _float(rule: Rule | None = None) -> Column:
    return Column(np.dtype("float64"), rule=rule)


def _count(kind: str = "int64") -> Column:
    return Column(np.dtype(kind), nullable=False, rule=Rule("must be at least 0", lambda values: compute.greater_equal(values, 0)))


def _within(least: float, most: float) -> Rule:
    return Rule(
        f"must be from {least} to {most}",
        lambda values: compute.and_(compute.greater_equal(values, float(least)), compute.less_equal(values, float(most))),
    )


def _one_of(*known: str | int) -> Rule:
    names = " or ".join([", ".join(map(str, known[:-1])), str(known[-1])])
    return Rule(f"must be {names}", lambda values: compute.is_in(values, value_set=arrow.array([*known, None], values.type)))


SPLITS = ("train", "validation", "test", "archive")
_POSITIVE = Rule("must be above 0", lambda values: compute.greater(values, 0.0))
_NOT_EMPTY = Rule("must not be empty", lambda values: compute.greater(compute.binary_length(values), 0))
_HASH = Rule("must be 16 hexadecimal digits", lambda values: compute.match_substring_regex(values, r"^[0-9a-f]{16}$"))

SCHEMA = {
    "sample_id": _text(nullable=False, unique=True),
    "uri": _text(nullable=False),
    "frame": _text(),  # which picture of a file that holds many, "array:index"
    "sha256": _text(),  # null when the file could not be read
    "dataset": _text(nullable=False),
    "subject_id": _text(nullable=False, rule=_NOT_EMPTY),
    "lesion_id": _text(),
    "slide_id": _text(),
    "group_id": _text(),  # what must stay in one split: subject, lesion, slide and near-duplicates joined; null when excluded
    "label": Column(pd.Int8Dtype(), rule=_one_of(0, 1)),
    "finding": _text(),
    "site": _text(),
    "skin_tone": _text(),
    "projection": _text(),
    "mask_uri": _text(),
    "mask_sha256": _text(),
    "split": _text(rule=_one_of(*SPLITS)),
    "level": _count("int32"),
    "x_px": _count(),
    "y_px": _count(),
    "width_px": _count(),  # 0 when the file could not be read
    "height_px": _count(),
    "spacing_um": _float(_POSITIVE),
    "tissue_share": _float(_within(0, 1)),
    "abnormal_share": _float(_within(0, 1)),  # of the mask in the sample
    "phash": _text(rule=_HASH),  # of the whole picture
    "sharpness": _float(),
    "brightness": _float(_within(0, 1)),
    "contrast": _float(),
    "ita_deg": _float(_within(-90, 90)),  # individual typology angle of the skin
    "flags": _text(),  # what was noticed and does not exclude: "blurred;pen"
    "transform": _text(),  # what is done to the pixels after reading, as JSON
    "excluded": _text(),
}
COLUMNS = tuple(SCHEMA)
TEXT_COLUMNS = tuple(name for name, column in SCHEMA.items() if column.kind == TEXT)
ARROW_TYPES = {name: column.arrow_type for name, column in SCHEMA.items()}


def validate_manifest(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the schema's types and columns in order; columns that may be null may be missing.

    Raises:
        ManifestError: names the first bad row and column of each broken rule.
    """
    _check_names(list(table.columns))
    table = table.reset_index(drop=True)
    valid, broken = {}, []
    for name, column in SCHEMA.items():
        if name not in table.columns:
            valid[name] = column.nothing(len(table))
            continue
        try:
            valid[name] = column.coerce(table[name])
            found = column.find_broken(valid[name])
        except _NOT_COERCIBLE:
            found = column.find_uncoercible(table[name])
        broken += [f"row {row}, column {name!r}: {value!r} {rule}" for row, value, rule in found]
    if broken:
        raise ManifestError("not a valid manifest: " + "; ".join(broken))
    return pd.DataFrame(valid, copy=False)  # one block a column: no second copy of the numbers


def _check_names(names: list[Any]) -> None:
    if unknown := [name for name in names if name not in SCHEMA]:
        raise ManifestError(f"unknown manifest columns {unknown}; a manifest has {list(COLUMNS)}")
    if absent := [name for name, column in SCHEMA.items() if name not in names and not column.nullable]:
        raise ManifestError(f"manifest columns are missing: {absent}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ManifestError(f"manifest columns are there twice: {twice}")
