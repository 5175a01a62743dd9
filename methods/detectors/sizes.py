"""Sizes that networks ask of their input."""

from typing import Annotated

from pydantic import AfterValidator


def _check_power_of_two(size: int) -> int:
    if size & (size - 1):
        raise ValueError(f"expected a power of two, got {size}")
    return size


PowerOfTwo = Annotated[int, AfterValidator(_check_power_of_two)]  # what is halved until little is left
