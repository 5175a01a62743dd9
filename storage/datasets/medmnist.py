"""MedMNIST and MedMNIST+: small medical pictures (28, 64, 128 or 224 px) in one .npz a data set, with official splits.

Paper: Yang et al.: MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image classification, Scientific Data 10:41,
2023. Where: https://zenodo.org/records/10519652 (pathmnist.npz, pneumoniamnist_224.npz, …).
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.one_class import list_frames, read_labels
from storage.datasets.source import SourceError, SourceItem, stem_of

_PARTS = {"train": "train", "val": "validation", "test": "test"}


class MedMnistSource(BaseModel):
    """Which .npz of MedMNIST, and which of its labels are normal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["medmnist"] = "medmnist"
    path: str = Field(description="a two-dimensional data set's file, e.g. pneumoniamnist.npz")
    normal_labels: tuple[int, ...] = Field(
        min_length=1, description="the labels that are normal; where a picture can have several (ChestMNIST) say -1, for none of them"
    )
    dataset: str | None = Field(default=None, description="name of the data set; the file's name when not given")


def list_medmnist(source: MedMnistSource) -> list[SourceItem]:
    """One item a picture: train, val and test in their order and with these splits; abnormal ones of train are excluded.

    The finding is the label's number, or the numbers joined by |. Every picture is a subject of its own, as persons are not published; the
    official splits keep them apart where the original data set knows them.

    Raises:
        SourceError: no such file, one without MedMNIST's arrays, a damaged one, or normal labels that do not occur.
    """
    uri = filesystems.absolute(source.path)
    if not (uri.lower().endswith(".npz") and filesystems.exists(uri)):
        raise SourceError(f"{source.path} is no file of MedMNIST: expected an .npz with train_images, train_labels, val_…, test_…")
    names = {part: _names(read_labels(uri, f"{part}_labels"), uri) for part in _PARTS}
    normal = {"" if label == -1 else str(label) for label in source.normal_labels}
    occurring = set().union(*names.values())
    if unknown := sorted(normal - occurring):
        raise SourceError(f"{source.path}: normal_labels {unknown} do not occur; found {sorted(occurring)[:20]}")
    return [
        item
        for part, split in _PARTS.items()
        for item in list_frames(
            uri,
            f"{part}_images",
            names[part],
            normal=normal,
            splits=[split] * len(names[part]),
            dataset=source.dataset or stem_of(uri),
        )
    ]


def _names(labels: NDArray[Any], uri: str) -> list[str]:
    """Each picture's label as text; of several 0/1 columns the numbers of those that are 1."""
    columns = labels.reshape(len(labels), -1)  # (N, L)
    if not np.issubdtype(columns.dtype, np.integer):
        raise SourceError(f"{uri}: expected labels that are integers, found {columns.dtype}")
    if columns.shape[1] == 1:
        return [str(int(label)) for label in columns[:, 0]]
    if not np.isin(columns, (0, 1)).all():
        raise SourceError(f"{uri}: expected {columns.shape[1]} columns of 0 and 1")
    return ["|".join(map(str, np.flatnonzero(row))) for row in columns]
