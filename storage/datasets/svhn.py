"""SVHN, cropped digits: 73,257 + 26,032 house numbers, 32 × 32 px; one digit is normal, the other nine are abnormal.

Paper: Netzer et al.: Reading digits in natural images with unsupervised feature learning, NIPS workshop, 2011.
Where: http://ufldl.stanford.edu/housenumbers (Format 2: train_32x32.mat, test_32x32.mat).
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.one_class import cut_training_part, list_frames, name_classes, read_labels
from storage.datasets.source import SourceError, SourceItem

DATASET = "svhn"
_TRAIN, _TEST = "train_32x32.mat", "test_32x32.mat"
_DIGITS = tuple(str(digit) for digit in range(10))


class SvhnSource(BaseModel):
    """Where SVHN's cropped digits are, and which digit is normal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["svhn"] = "svhn"
    path: str = Field(description=f"folder with {_TRAIN} and {_TEST}")
    normal_class: int = Field(ge=0, le=9, description="the normal digit; the other nine are abnormal")
    validation_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of the official training part, its last pictures, that validates"
    )
    abnormal_of_train: Literal["validation", "leave-out"] = Field(
        default="validation",
        description="abnormal pictures among those that validate: used, or excluded; those of the rest of the training part always are",
    )


def list_svhn(source: SvhnSource) -> list[SourceItem]:
    """One item a digit, in the files' order: training part, test part; the official test part is the split test.

    Every picture is a subject of its own; which of them were cut from one photograph is not published.

    Raises:
        SourceError: a file is missing or damaged.
    """
    root = filesystems.absolute(source.path)
    train, test = filesystems.join(root, _TRAIN), filesystems.join(root, _TEST)
    if not (filesystems.exists(train) and filesystems.exists(test)):
        raise SourceError(f"{source.path} is not SVHN: expected {_TRAIN} and {_TEST} (cropped digits, format 2) in it")
    classes = {uri: _classes(uri) for uri in (train, test)}
    splits: dict[str, list[str | None]] = {
        train: cut_training_part(len(classes[train]), validation_share=source.validation_share),
        test: [*["test"] * len(classes[test])],
    }
    return [
        item
        for uri in (train, test)
        for item in list_frames(
            uri,
            "X",
            classes[uri],
            normal=(str(source.normal_class),),
            splits=splits[uri],
            dataset=DATASET,
            leave_out=("validation",) if source.abnormal_of_train == "leave-out" else (),
        )
    ]


def _classes(uri: str) -> list[str]:
    labels = read_labels(uri, "y")
    labels = labels.copy()
    labels[labels == 10] = 0  # SVHN calls the zero 10
    return name_classes(labels, _DIGITS, uri=uri)
