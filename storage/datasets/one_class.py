"""What the one-class benchmarks share (CIFAR-10, SVHN, MedMNIST, MNIST): some classes of a container are normal, the others abnormal."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import filesystems
from storage.datasets.source import SourceError, SourceItem
from storage.frames import read_array
from storage.images import UnreadableImageError

ABNORMAL_IN_TRAINING = "abnormal class in the training part"


def read_labels(uri: str, name: str) -> NDArray[Any]:
    """An array of labels of a container, (N,) or (N, L) of integers.

    Raises:
        SourceError: no such file, no such array, or a damaged container.
    """
    try:
        return read_array(uri, name)
    except FileNotFoundError:
        raise SourceError(f"there is no {uri}") from None
    except UnreadableImageError as error:
        raise SourceError(str(error)) from error


def list_frames(
    uri: str,
    array: str,
    names: Sequence[str],
    *,
    normal: Collection[str],
    splits: Sequence[str | None],
    dataset: str,
    leave_out: Collection[str] = (),
) -> Iterator[SourceItem]:
    """One item a picture of an array, each a subject of its own: training is of normal classes alone.

    Args:
        uri: the container.
        array: its array of pictures.
        names: each picture's class.
        normal: the classes that are normal.
        splits: each picture's split; abnormal ones of train are excluded.
        dataset: its name.
        leave_out: further splits of which the abnormal pictures are excluded.
    """
    without_abnormal = {"train", *leave_out}
    container = filesystems.name_of(uri)
    for index, (name, split) in enumerate(zip(names, splits, strict=True)):
        is_normal = name in normal
        kept = is_normal or split not in without_abnormal
        yield SourceItem(
            uri=uri,
            dataset=dataset,
            subject_id=f"{container}:{array}:{index}",
            label=0 if is_normal else 1,
            frame=f"{array}:{index}",
            finding=None if is_normal else name,
            split=split if kept else None,
            excluded=None if kept else ABNORMAL_IN_TRAINING,
        )


def cut_training_part(count: int, *, validation_share: float) -> list[str | None]:
    """The splits of an official training part of `count` pictures: the last ones, in its own random order, validate."""
    validating = round(count * validation_share)
    return [*["train"] * (count - validating), *["validation"] * validating]


def name_classes(labels: NDArray[Any], names: Sequence[str], *, uri: str) -> list[str]:
    """The class names of labels from 0.

    Raises:
        SourceError: labels that are not one number a picture, or one that has no name.
    """
    if labels.ndim != 1 or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names)):
        raise SourceError(f"{uri}: expected one label a picture from 0 to {len(names) - 1}, found {np.unique(labels)[:20].tolist()}")
    return [names[int(label)] for label in labels]
