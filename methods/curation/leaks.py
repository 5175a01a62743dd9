"""The proof that nothing crosses splits, in any manifest, or what does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from methods.curation.grouped_samples import check_ids
from methods.curation.split_config import SplitError
from methods.curation.text_columns import first_equal

LeakKind = Literal["subject", "lesion", "slide", "duplicate", "group"]

_BOX = ("frame", "level", "x_px", "y_px", "width_px", "height_px")
LEAK_KEYS: tuple[tuple[LeakKind, tuple[str, ...]], ...] = (
    ("subject", ("subject_id", "dataset")),
    ("lesion", ("lesion_id", "dataset")),
    ("slide", ("slide_id", "dataset")),
    ("duplicate", ("sha256", *_BOX)),
    ("duplicate", ("duplicate_group",)),
    ("group", ("group_id",)),
)
# of tables that others made: in ours a sample's identity and its file's digest follow from its content
FOREIGN_KEYS: tuple[tuple[LeakKind, tuple[str, ...]], ...] = (
    *LEAK_KEYS,
    ("duplicate", ("uri", *_BOX)),
    ("duplicate", ("sample_id",)),
)


@dataclass(frozen=True)
class Leak:
    """Something that is in more than one split.

    Attributes:
        kind: what crosses: a subject, lesion or slide, a duplicate (one content, file or sample, or a near-duplicate group), a group.
        key: its id; with the data set before it where ids are unique in a data set only; the start of a sha256.
        splits: the splits it is in, sorted.
        rows: positions of its rows, ascending.
        sample_ids: their sample_id, where there is one.
    """

    kind: LeakKind
    key: str
    splits: tuple[str, ...]
    rows: tuple[int, ...] = field(repr=False)
    sample_ids: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.key!r} is in {' and '.join(self.splits)} ({len(self.rows)} rows, first {self.rows[0]})"


def check_splits(
    table: pd.DataFrame, *, keys: Sequence[tuple[LeakKind, tuple[str, ...]]] = LEAK_KEYS, across_datasets: bool = False
) -> list[Leak]:
    """What crosses splits in a manifest, ours or not; the empty list proves that nothing does.

    Rows without split or with a reason in `excluded` are in no split. "archive" is one: what is searched must not have been learnt from.

    Args:
        table: with the columns split and subject_id, and any of lesion_id, slide_id, sha256 (+ frame, level and box), duplicate_group,
            group_id, dataset, excluded, sample_id.
        keys: what must not cross: (kind, columns); an entry is left out whose first column is not there, a further column likewise.
        across_datasets: the same subject, lesion or slide id in two data sets is one; else ids hold within a data set.

    Returns:
        Sorted by kind as in `keys`, then by key.

    Raises:
        SplitError: no column split or subject_id, or a row in a split without subject.
    """
    if missing := [name for name in ("split", "subject_id") if name not in table.columns]:
        raise SplitError(f"expected the columns split and subject_id; {', '.join(missing)} is missing")
    in_split = table["split"].notna().to_numpy(bool)
    if "excluded" in table.columns:
        in_split = in_split & table["excluded"].isna().to_numpy(bool)
    rows = np.flatnonzero(in_split)
    asked = {"split", "subject_id", "sample_id", *(name for _, columns in keys for name in columns)}
    used = table[[name for name in table.columns if name in asked]]  # of long manifests a copy of the rest would be several times as large
    used = used if len(rows) == len(table) else used.iloc[rows]
    check_ids(used["subject_id"], what="subject_id", rows=rows)
    splits, names = pd.factorize(used["split"].astype(str), sort=True)
    leaks: list[Leak] = []
    for kind, columns in keys:
        there = [name for name in columns if name in used.columns and not (across_datasets and name == "dataset")]
        if there and there[0] == columns[0]:
            leaks += _leaks(kind, used, there, splits, np.asarray(names, str), rows)
    return leaks


def _leaks(kind: LeakKind, used: pd.DataFrame, columns: list[str], splits: np.ndarray, names: np.ndarray, rows: np.ndarray) -> list[Leak]:
    codes = first_equal(used[columns[0]])
    there = np.flatnonzero(codes >= 0)
    codes = codes[there]
    if np.array_equal(codes, there):  # each key once
        return []
    # what is in one split by its first column is so with the further ones, whose codes take long
    apart = splits[codes] != splits[there]
    crosses = np.zeros(len(splits), bool)
    crosses[codes[apart]] = True
    inside = crosses[codes]
    there, codes = there[inside], codes[inside]
    if not len(there):
        return []
    for name in columns[1:]:
        more, values = pd.factorize(used[name].iloc[there] if len(there) < len(used) else used[name], use_na_sentinel=False)
        if len(values) > 1:
            codes, _ = pd.factorize(codes * len(values) + more)
    split = splits[there]
    first = np.zeros(codes.max(initial=-1) + 1, split.dtype)
    first[codes] = split
    crossing = np.zeros(len(first), bool)
    crossing[codes[first[codes] != split]] = True
    leaking = np.flatnonzero(crossing[codes])
    leaking = leaking[np.argsort(codes[leaking], kind="stable")]
    if not len(leaking):
        return []
    members = there[leaking]
    starts = np.flatnonzero(np.r_[True, np.diff(codes[leaking]) != 0])
    texts = _key_texts(used[columns].iloc[members[starts]])
    ids = used["sample_id"].iloc[members].astype(str).tolist() if "sample_id" in used.columns else []
    of_rows, of_splits = rows[members].tolist(), names[split[leaking]].tolist()
    spans = zip(texts, starts.tolist(), [*starts[1:].tolist(), len(members)], strict=True)
    found = [
        Leak(kind, text, tuple(sorted(set(of_splits[start:end]))), tuple(of_rows[start:end]), tuple(ids[start:end]))
        for text, start, end in spans
    ]
    return sorted(found, key=lambda leak: leak.key)


def _key_texts(keys: pd.DataFrame) -> list[str]:
    values = keys.astype(object).where(keys.notna(), None)
    name = values.columns[0]
    if name in ("sha256", "uri"):
        places = (", ".join(str(value) for value in box if value is not None) for box in values.iloc[:, 1:].itertuples(index=False))
        starts = (f"{str(value)[:16]}…" if name == "sha256" else str(value) for value in values[name])
        return [f"{start} ({place})" if place else start for start, place in zip(starts, places, strict=True)]
    if "dataset" not in values:
        return [str(key) for key in values.iloc[:, 0]]
    return [str(key) if dataset is None else f"{dataset}/{key}" for key, dataset in zip(values.iloc[:, 0], values["dataset"], strict=True)]
