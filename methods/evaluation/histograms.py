"""Exact counts of scores by subject, class and value.

A float16 score has at most 65,536 values. Counting each subject's normal and abnormal pixels per value once therefore loses nothing:
every pixel metric over any number of pixels, and every bootstrap over subjects, follows exactly from the counts. Image scores are counted
alike. Only what occurs is kept (sparse tables), so that a million scores of thousands of subjects are as small as their list.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.sparse import coo_array, csc_array, csr_array

from methods.curation.hashing import compiled

_VALUES = 1 << 16
_LOWEST, _HIGHEST = 0x0400, 0xFBFF  # keys of the finite float16 values; below and above are infinity and NaN
_MINUS_ZERO, _ZERO = 0x7FFF, 0x8000
_MERGED_AT_ONCE = 32
_EIGHT_NEIGHBOURS = np.ones((3, 3), int)


@dataclass(frozen=True, eq=False)
class SubjectCounts:
    """How often each score occurs in each subject.

    Attributes:
        subjects: S names.
        values: (U,) float64, the distinct scores, ascending.
        normal: (S, U) int64, normal items by subject and value, sparse by columns; a dense one is converted.
        abnormal: (S, U) int64 as `normal`.
        regions: (S, U) float64 as `normal`: of each connected abnormal region the share of its pixels that has the value, summed over the
            subject's regions; None for image scores.
    """

    subjects: tuple[str, ...]
    values: np.ndarray
    normal: Any
    abnormal: Any
    regions: Any = None

    def __post_init__(self) -> None:
        for name in ("normal", "abnormal", "regions"):
            if (table := getattr(self, name)) is not None:
                object.__setattr__(self, name, csc_array(table))

    @property
    def carries_anomaly(self) -> np.ndarray:
        """(S,) bool."""
        return np.asarray(self.abnormal.sum(1) > 0)


def order_key(scores: np.ndarray) -> np.ndarray:
    """uint16 keys in the order of the scores, of their shape; −0 and +0 have one key.

    Args:
        scores: float16, not NaN.

    Raises:
        ValueError: another dtype.
    """
    if scores.dtype != np.float16:
        raise ValueError(f"expected float16 scores, got {scores.dtype}; store maps as float16 or use count_scores")
    bits = (scores + np.float16(0)).view(np.uint16)  # −0 + 0 is +0
    return np.where(bits & 0x8000, ~bits, bits | np.uint16(0x8000))


def count_pixels(maps: np.ndarray, masks: np.ndarray, subjects: np.ndarray) -> SubjectCounts:
    """Count the pixels of maps; connected abnormal regions (8 neighbours, Bergmann et al. 2021) are those of a map's own mask.

    Args:
        maps: (N, H, W) float16, finite.
        masks: (N, H, W) bool, true where abnormal.
        subjects: (N,) the subject of each map.

    Raises:
        ValueError: shapes or dtypes differ from these, or a score is NaN or infinite.
    """
    if maps.dtype != np.float16 or masks.dtype != bool or maps.ndim != 3 or maps.shape != masks.shape or len(maps) != len(subjects):
        raise ValueError(
            f"expected maps (N, H, W) float16, masks (N, H, W) bool and N subjects, got {maps.shape} {maps.dtype}, "
            f"{masks.shape} {masks.dtype} and {len(subjects)}"
        )
    which, names = _number(subjects)
    flat_shape = len(maps), maps.shape[1] * maps.shape[2]
    bits, flat = np.ascontiguousarray(maps).view(np.uint16).reshape(flat_shape), np.ascontiguousarray(masks).reshape(flat_shape)
    table, keys_of_row = np.zeros((3, _VALUES), np.uint32), np.zeros(flat_shape[1], np.uint16)
    found: list[tuple[np.ndarray, ...]] = []
    bad = 0
    order = np.argsort(which, kind="stable")
    for subject, rows in enumerate(np.split(order, np.cumsum(np.bincount(which, minlength=len(names)))[:-1])):
        lowest, highest, unfit = _tally(bits, flat, rows, keys_of_row, table)
        bad += unfit
        if lowest <= _MINUS_ZERO <= highest:
            highest = max(highest, _ZERO)
            table[:, _ZERO] += table[:, _MINUS_ZERO]
            table[:, _MINUS_ZERO] = 0
        span = table[:, lowest : highest + 1]
        normal_here, abnormal_here = span[0].astype(np.int64) + span[2], span[1].astype(np.int64)
        keys = np.flatnonzero(normal_here | abnormal_here)
        found.append((np.full(len(keys), subject, np.int32), keys + lowest, normal_here[keys], abnormal_here[keys]))
        span[:] = 0
    if bad:
        raise ValueError(f"{bad} of {len(maps)} maps hold NaN or infinite scores; count scored samples only")
    empty = (np.zeros(0, np.int64),) * 4
    subject_of, key_of, normal, abnormal = (np.concatenate(parts) for parts in zip(empty, *found, strict=True))
    occupied = np.flatnonzero(np.bincount(key_of, minlength=_VALUES))
    shape = (len(names), len(occupied))
    column_of = np.zeros(_VALUES, np.int32)
    column_of[occupied] = np.arange(len(occupied))
    return SubjectCounts(
        tuple(names),
        _value_of(occupied),
        _from_sorted(normal, subject_of, column_of[key_of], shape),
        _from_sorted(abnormal, subject_of, column_of[key_of], shape),
        _tabulate(*_share_regions(maps, masks, which, column_of), shape),
    )


def count_scores(scores: np.ndarray, labels: np.ndarray, subjects: np.ndarray) -> SubjectCounts:
    """Count image scores; the distinct values come back as float64, which holds float32 exactly.

    Args:
        scores: (N,) finite.
        labels: (N,) 0 normal, 1 abnormal.
        subjects: (N,) the subject of each image.

    Raises:
        ValueError: lengths differ, another label, a subject is missing, or a score is NaN or infinite.
    """
    if not len(scores) == len(labels) == len(subjects):
        raise ValueError(f"expected as many scores as labels and subjects, got {len(scores)}, {len(labels)}, {len(subjects)}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are NaN or infinite; count scored samples only")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("expected labels 0 (normal) or 1 (abnormal), got others or missing ones; leave unlabelled samples out")
    which, names = _number(subjects)
    values, position = np.unique(np.asarray(scores, float) + 0.0, return_inverse=True)
    shape, abnormal = (len(names), len(values)), np.asarray(labels) == 1
    ones = np.ones(len(which), np.int64)
    tables = [_tabulate(ones[chosen], which[chosen], position[chosen], shape) for chosen in (~abnormal, abnormal)]
    return SubjectCounts(tuple(names), values, *tables)


def merge_counts(parts: Sequence[SubjectCounts]) -> SubjectCounts:
    """The counts of all parts together: subjects and values are united, equal ones add up.

    Raises:
        ValueError: there are no parts.
    """
    if not parts:
        raise ValueError("expected the counts of at least one part, got none")
    names = sorted({name for part in parts for name in part.subjects})
    row = {name: position for position, name in enumerate(names)}
    values = np.unique(np.concatenate([part.values for part in parts]))
    rows = [np.array([row[name] for name in part.subjects], np.int32) for part in parts]
    columns = [np.searchsorted(values, part.values).astype(np.int32) for part in parts]

    def join(table_of: Callable[[SubjectCounts], Any]) -> csc_array:
        tables = [table_of(part).tocoo() for part in parts]
        data = np.concatenate([table.data for table in tables])
        row_of = np.concatenate([where[table.coords[0]] for where, table in zip(rows, tables, strict=True)])
        column_of = np.concatenate([where[table.coords[1]] for where, table in zip(columns, tables, strict=True)])
        return _tabulate(data, row_of, column_of, (len(names), len(values)))

    regions = join(lambda part: part.regions) if all(part.regions is not None for part in parts) else None
    return SubjectCounts(tuple(names), values, join(lambda part: part.normal), join(lambda part: part.abnormal), regions)


def gather_counts(parts: Iterable[SubjectCounts | None]) -> SubjectCounts | None:
    """As `merge_counts` of a stream of any length, each part merged a few times only; None where there is nothing."""
    levels: list[list[SubjectCounts]] = []
    for part in parts:
        merged, level = part, 0
        while merged is not None:
            if level == len(levels):
                levels.append([])
            levels[level].append(merged)
            merged = None
            if len(levels[level]) == _MERGED_AT_ONCE:
                merged, levels[level], level = merge_counts(levels[level]), [], level + 1
    waiting = [part for level in levels for part in level]
    return merge_counts(waiting) if waiting else None


def take_subjects(counts: SubjectCounts, chosen: np.ndarray, names: Sequence[str] | None = None) -> SubjectCounts:
    """The counts of some rows, summed where they get one name.

    Args:
        counts: of S rows.
        chosen: positions of rows (n,).
        names: n, of the rows that come back; those that they had if None.
    """
    kept = [counts.subjects[position] for position in chosen] if names is None else names
    which, unique = _number(np.asarray(kept, object))
    sums = csc_array((np.ones(len(chosen), np.int64), (which, chosen)), shape=(len(unique), len(counts.subjects)))
    tables = [None if table is None else sums @ table for table in (counts.normal, counts.abnormal, counts.regions)]
    return SubjectCounts(tuple(unique), counts.values, *tables)


def _number(subjects: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The position of each subject among the sorted names, and the names; hashed, because sorting a million strings takes seconds."""
    if pd.isna(subjects).any():
        raise ValueError(f"{int(pd.isna(subjects).sum())} of {len(subjects)} samples have no subject; intervals are over subjects")
    codes, found = pd.factorize(np.asarray(subjects, object))
    names = np.array([str(name) for name in found])
    order = np.argsort(names, kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    return rank[codes], names[order].tolist()


def _tabulate(data: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csc_array:
    """A sparse table in which equal places add up and empty ones are not kept."""
    table = coo_array((data, (rows.astype(np.int32, copy=False), columns.astype(np.int32, copy=False))), shape=shape).tocsc()
    table.eliminate_zeros()
    return table


def _from_sorted(data: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csc_array:
    """As `_tabulate` of places that are sorted by row and column and occur once: many times faster."""
    kept = np.flatnonzero(data)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=shape[0]))]).astype(np.int32)
    return csr_array((data[kept], columns[kept], starts), shape=shape).tocsc()


def _share_regions(
    maps: np.ndarray, masks: np.ndarray, which: np.ndarray, column_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every abnormal pixel: one part in so many of its region, its subject and the column of its score."""
    shares, subjects, columns = [np.zeros(0)], [np.zeros(0, int)], [np.zeros(0, int)]
    for row in [row for row in range(len(masks)) if masks[row].any()]:
        box = tuple(slice(at[0], at[-1] + 1) for at in (np.flatnonzero(masks[row].any(axis)) for axis in (1, 0)))
        mask = masks[row][box]
        region = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)[0][mask]
        shares.append(1 / np.bincount(region)[region])
        subjects.append(np.full(len(region), which[row]))
        columns.append(column_of[order_key(maps[row][box][mask])])
    return np.concatenate(shares), np.concatenate(subjects), np.concatenate(columns)


@compiled
def _tally(bits: Any, masks: Any, rows: Any, keys: Any, table: Any) -> Any:  # pragma: no cover - compiled
    """Add the pixels of rows to a table (3, 65,536) by key: the lowest key and the highest, and how many maps are not finite.

    Line 1 is of abnormal pixels; 0 and 2 are of normal ones by turns, because adding twice to one place has to wait for itself.
    """
    lowest, highest, unfit = _VALUES - 1, 0, 0
    size = bits.shape[1]
    for row in rows:
        low: Any = np.uint16(0xFFFF)
        high: Any = np.uint16(0)
        marked = np.uint8(0)
        for i in range(size):  # a loop of its own, in vectors
            b = bits[row, i]
            key = np.uint16(b ^ (np.uint16(0xFFFF) if b & np.uint16(0x8000) else np.uint16(0x8000)))
            keys[i] = key
            low, high = min(low, key), max(high, key)
            marked |= np.uint8(masks[row, i])
        if marked:
            for i in range(size):
                table[np.uint8(masks[row, i]), keys[i]] += np.uint32(1)
        else:
            for i in range(0, size - 1, 2):
                table[0, keys[i]] += np.uint32(1)
                table[2, keys[i + 1]] += np.uint32(1)
            if size % 2:
                table[0, keys[size - 1]] += np.uint32(1)
        unfit += low < _LOWEST or high > _HIGHEST
        lowest, highest = min(lowest, int(low)), max(highest, int(high))
    return lowest, highest, unfit


def _value_of(keys: np.ndarray) -> np.ndarray:
    """The scores of keys, the inverse of `order_key`, as float64."""
    keys = keys.astype(np.uint16)
    bits = np.where(keys & 0x8000, keys & np.uint16(0x7FFF), ~keys)
    return bits.view(np.float16).astype(float)
