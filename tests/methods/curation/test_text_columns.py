"""Look-ups by Arrow give what a dictionary would."""

import numpy as np
import pandas as pd
import pytest

from methods.curation.text_columns import first_equal, is_among, is_first, places_in


@pytest.mark.parametrize("dtype", ["string", "str", object])
def test_values_are_found_where_they_stand_first_and_null_nowhere(dtype: str | type) -> None:
    values = pd.Series(["b", None, "x", "a", "b"], dtype=dtype)
    these = pd.Series(["a", "b", "a", None], dtype=dtype)
    assert places_in(values, these).tolist() == [1, -1, -1, 0, 1]
    assert is_among(values, these).tolist() == [True, False, False, True, True]


def test_columns_in_pieces_lists_and_nothing_are_looked_up_alike() -> None:
    pieces = pd.concat([pd.Series(["a", "b"], dtype="string"), pd.Series(["c"], dtype="string")])
    assert places_in(["c", "a"], pieces).tolist() == [2, 0]
    assert is_among(pieces, ["b"]).tolist() == [False, True, False]
    nothing = pd.Series([], dtype="string")
    assert is_among(pieces, nothing).tolist() == [False] * 3
    assert places_in(nothing, pieces).dtype == np.int64
    assert is_among(nothing, pieces).dtype == bool


@pytest.mark.parametrize("values", [pd.Series(["b", None, "a", "b", "a"], dtype="string"), pd.Series([2.5, np.nan, 1.0, 2.5, 1.0])])
def test_equal_values_are_known_by_their_first_and_null_is_equal_to_nothing(values: pd.Series) -> None:
    assert first_equal(values).tolist() == [0, -1, 2, 0, 2]
    assert first_equal(values.to_numpy(object)).tolist() == [0, -1, 2, 0, 2]


def test_the_first_of_equal_values_is_told_from_the_others() -> None:
    assert is_first(pd.Series(["b", None, "a", "b", None], dtype="string")).tolist() == [True, False, True, False, False]
