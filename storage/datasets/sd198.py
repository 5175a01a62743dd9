"""SD-198: 6,584 clinical photographs of 198 skin diseases, one folder a class.

Paper: Sun, Yang, Sun, Wang: A Benchmark for Automatic Visual Classification of Clinical Skin Disease Images, ECCV 2016.
Where: https://huggingface.co/datasets/resyhgervshshgdfghsdfgh/SD-198 (sd-198.zip).
"""

from difflib import get_close_matches
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage import filesystems
from storage.datasets.source import SourceError, SourceItem, list_pictures, stem_of, without_row

DATASET = "sd-198"
_LIST = "images.txt"


class Sd198Source(BaseModel):
    """Where SD-198 is, and what its classes count as. A class is named like its folder: Erythema_Annulare_Centrifigum (sic)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sd-198"] = "sd-198"
    path: str = Field(description="the unpacked sd-198 folder: images/<Class>/*.jpg, images.txt, classes.txt, image_class_labels.txt")
    abnormal: tuple[str, ...] | None = Field(
        default=None, description="classes that are abnormal; all that nothing else names when not given"
    )
    normal: tuple[str, ...] = Field(default=(), description="classes that are normal")
    left_out: tuple[str, ...] = Field(default=(), description="classes that are not listed, e.g. those of hands, feet, nails and mucosa")
    fold: int | None = Field(
        default=None,
        ge=0,
        description="take the published split from 8_2_split/train_<fold>.txt and val_<fold>.txt (its held-out list becomes test); "
        "no split when not given",
    )

    @model_validator(mode="after")
    def _a_class_is_named_once(self) -> Self:
        named = [*self.normal, *(self.abnormal or ()), *self.left_out]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"normal, abnormal and left_out name {twice} more than once")
        return self


def list_sd198(source: Sd198Source) -> list[SourceItem]:
    """One item a picture of a chosen class: those of images.txt (without one: those in images/), then files it does not name, excluded.

    Persons are not known: the subject is the file's name, so that a picture that stands in two classes is one subject.

    Raises:
        SourceError: no images/ with classes in it, a class that does not exist, lists that contradict each other.
    """
    root = filesystems.absolute(source.path)
    folder = filesystems.join(root, "images")
    pictures = {uri[len(folder) + 1 :]: uri for uri in list_pictures(folder) if "/" in uri[len(folder) + 1 :]}
    if not pictures:
        raise SourceError(f"{source.path} is not SD-198: expected images/<Class_Name>/*.jpg in it")
    labelled = _read_classes(root) or {name: name.split("/")[0] for name in pictures}
    class_of = {**{name: name.split("/")[0] for name in pictures}, **labelled}
    _check_classes(source, set(class_of.values()))
    splits = {} if source.fold is None else _read_split(root, source.fold)
    if splits and not splits.keys() & labelled.keys():
        raise SourceError(f"{source.path}: fold {source.fold} names none of the pictures, e.g. {next(iter(splits))}")
    items = [
        _to_item(name, class_name, source, pictures.get(name, filesystems.join(folder, name)), splits.get(name))
        for name, class_name in labelled.items()
        if _is_listed(class_name, source)
    ]
    wanted = {name: uri for name, uri in pictures.items() if _is_listed(class_of[name], source)}
    return items + without_row(wanted, labelled, dataset=DATASET, table=_LIST)


def _to_item(name: str, class_name: str, source: Sd198Source, uri: str, split: str | None) -> SourceItem:
    label = int(class_name not in source.normal)
    return SourceItem(uri=uri, dataset=DATASET, subject_id=stem_of(name), label=label, finding=class_name if label else None, split=split)


def _is_listed(class_name: str, source: Sd198Source) -> bool:
    return class_name not in source.left_out and (class_name in source.normal or source.abnormal is None or class_name in source.abnormal)


def _read_classes(root: str) -> dict[str, str]:
    """The class of every picture of images.txt ("17 Psoriasis/x.jpg").

    It is checked against image_class_labels.txt and classes.txt where they are.
    """
    if not filesystems.exists(filesystems.join(root, _LIST)):
        return {}
    path_of = _read_pairs(root, _LIST)
    class_of = {name: name.split("/")[0] for name in path_of.values()}
    labels, names = "image_class_labels.txt", "classes.txt"
    if all(filesystems.exists(filesystems.join(root, file)) for file in (labels, names)):
        name_of, label_of = _read_pairs(root, names), _read_pairs(root, labels)
        for number, path in path_of.items():
            if (published := name_of.get(label_of.get(number, ""))) != class_of[path]:
                raise SourceError(f"{root}: picture {number} is {path} in {_LIST} and {published} in {labels}; unpack the archive anew")
    return class_of


def _read_split(root: str, fold: int) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split, file in (("train", f"8_2_split/train_{fold}.txt"), ("test", f"8_2_split/val_{fold}.txt")):
        if not filesystems.exists(filesystems.join(root, file)):
            raise SourceError(f"{root}: fold = {fold} needs {file} (lines of picture and class number); leave fold away to split anew")
        for path in (line.rsplit(maxsplit=1)[0] for line in _read_lines(root, file)):
            if splits.setdefault(path, split) != split:
                raise SourceError(f"{root}: fold {fold} has {path} in train and in val; unpack the archive anew")
    return splits


def _read_pairs(root: str, file: str) -> dict[str, str]:
    pairs = [line.split(maxsplit=1) for line in _read_lines(root, file)]
    if bad := [number for number, pair in enumerate(pairs, start=1) if len(pair) != 2]:
        raise SourceError(f"{root}/{file}, line {bad[0]}: expected two words")
    return {first: second.strip() for first, second in pairs}


def _read_lines(root: str, file: str) -> list[str]:
    lines = filesystems.read_bytes(filesystems.join(root, file)).decode("utf-8-sig").splitlines()
    return [line for line in lines if line.strip()]


def _check_classes(source: Sd198Source, there: set[str]) -> None:
    for name in (*source.normal, *(source.abnormal or ()), *source.left_out):
        if name not in there:
            near = get_close_matches(name, there, n=3) or sorted(there)[:3]
            raise SourceError(f"{source.path}: there is no class {name!r} among the {len(there)}; did you mean {', '.join(near)}?")
