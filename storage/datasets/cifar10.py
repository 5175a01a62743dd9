"""CIFAR-10: 60,000 photographs of ten classes, 32 × 32 px; one class is normal, the other nine are abnormal.

Paper: Krizhevsky: Learning multiple layers of features from tiny images, 2009. Where: https://www.cs.toronto.edu/~kriz/cifar.html, the
Python or the binary version, unpacked.
"""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.one_class import cut_training_part, list_frames, name_classes, read_labels
from storage.datasets.source import SourceError, SourceItem

DATASET = "cifar-10"
CifarClass = Literal["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CLASSES: tuple[str, ...] = get_args(CifarClass)  # by label
_VERSIONS = {"cifar-10-batches-py": "", "cifar-10-batches-bin": ".bin"}
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"


class Cifar10Source(BaseModel):
    """Where CIFAR-10 is, and which class is normal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cifar-10"] = "cifar-10"
    path: str = Field(description="folder with cifar-10-batches-py/ or cifar-10-batches-bin/, or one of these itself")
    normal_class: CifarClass = Field(description="the normal class; the other nine are abnormal")
    validation_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of the official training part, its last pictures, that validates"
    )
    abnormal_of_train: Literal["validation", "leave-out"] = Field(
        default="validation",
        description="abnormal pictures among those that validate: used, or excluded; those of the rest of the training part always are",
    )


def list_cifar10(source: Cifar10Source) -> list[SourceItem]:
    """One item a picture, in the files' order: training part, test part; the official test part is the split test.

    Every picture is a subject of its own.

    Raises:
        SourceError: neither version is there, a file of it is missing, or one is damaged.
    """
    folder, suffix = _find_version(filesystems.absolute(source.path), source.path)
    labels = {name: _classes(filesystems.join(folder, name + suffix)) for name in (*_TRAIN, _TEST)}
    train = iter(cut_training_part(sum(len(labels[name]) for name in _TRAIN), validation_share=source.validation_share))
    return [
        item
        for name, classes in labels.items()
        for item in list_frames(
            filesystems.join(folder, name + suffix),
            "data",
            classes,
            normal=(source.normal_class,),
            splits=["test"] * len(classes) if name == _TEST else [next(train) for _ in classes],
            dataset=DATASET,
            leave_out=("validation",) if source.abnormal_of_train == "leave-out" else (),
        )
    ]


def _find_version(root: str, path: str) -> tuple[str, str]:
    for version, suffix in _VERSIONS.items():
        for folder in (filesystems.join(root, version), root):
            if filesystems.exists(filesystems.join(folder, _TEST + suffix)):
                return folder, suffix
    raise SourceError(f"{path} is not CIFAR-10: expected {'/ or '.join(_VERSIONS)}/ with {_TRAIN[0]} to 5 and {_TEST} (unpack the archive)")


def _classes(uri: str) -> list[str]:
    return name_classes(read_labels(uri, "labels"), CLASSES, uri=uri)
