"""Look-ups in long columns of text by Arrow.

pandas does some of them value by value in Python, fifty times slower and with a copy as Python objects, and its codes of a column of
digests (`factorize`) take twice the memory of a look-up of the column in itself.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as arrow
from pyarrow import compute

Texts: TypeAlias = pd.Series | pd.Index | arrow.Array | arrow.ChunkedArray | Sequence[str | None]


def is_among(values: Texts, these: Texts) -> np.ndarray:
    """(n,) bool: whether each value is one of these; what is null is not."""
    found = compute.is_in(_as_arrow(values), value_set=_as_arrow(these), skip_nulls=True)
    return np.asarray(found, bool)


def places_in(values: Texts, these: Texts) -> np.ndarray:
    """(n,) int64: where each value stands among these, the first time; −1 where it does not, and for null."""
    found = compute.index_in(_as_arrow(values), value_set=_as_arrow(these), skip_nulls=True)
    return np.asarray(compute.fill_null(found, -1), np.int64)


def is_first(values: Texts) -> np.ndarray:
    """(n,) bool: whether each value stands there for the first time; what is null does not."""
    return np.asarray(places_in(values, values) == np.arange(len(values)), bool)


def first_equal(values: pd.Series | np.ndarray) -> np.ndarray:
    """(n,) int64: where the value of each stands for the first time, −1 for null; values of any type."""
    if isinstance(values, pd.Series) and isinstance(values.dtype, pd.StringDtype):
        return places_in(values, values)
    codes, names = pd.factorize(values)
    known = np.flatnonzero(codes >= 0)
    first, equal = np.empty(len(names), np.int64), np.full(len(codes), -1)
    first[codes[known][::-1]] = known[::-1]  # of those that write to one place the last one counts
    equal[known] = first[codes[known]]
    return equal


def _as_arrow(values: Texts) -> arrow.Array | arrow.ChunkedArray:
    if isinstance(values, arrow.Array | arrow.ChunkedArray):
        return values.cast(arrow.large_string())
    return arrow.array(values, arrow.large_string(), from_pandas=True)
