"""Exact counts of scores by subject, class and value.

A float16 score has at most 65,536 values. Counting each subject's normal and abnormal pixels per value once therefore loses nothing:
every pixel metric over any number of pixels, and every bootstrap over subjects, follows exactly from the counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_VALUES = 1 << 16


@dataclass(frozen=True)
class SubjectCounts:
    """How often each score occurs in each subject.

    Attributes:
        subjects: S names.
        values: (U,) float64, the distinct scores, ascending.
        normal: (S, U) int64, normal items by subject and value.
        abnormal: (S, U) int64.
    """

    subjects: tuple[str, ...]
    values: np.ndarray
    normal: np.ndarray
    abnormal: np.ndarray


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
    """Count the pixels of maps, in memory of at most about 30 bytes a pixel besides 16 S × U bytes for what comes back.

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
    if not np.isfinite(maps).all():
        bad = int((~np.isfinite(maps)).any((1, 2)).sum())
        raise ValueError(f"{bad} of {len(maps)} maps hold NaN or infinite scores; count scored samples only")
    names, which = np.unique(np.asarray(subjects, str), return_inverse=True)
    keys = order_key(maps)
    occupied = np.flatnonzero(np.bincount(keys.ravel(), minlength=_VALUES))
    counts = np.zeros((2, len(names), len(occupied)), np.int64)
    for subject in range(len(names)):
        mine = which == subject
        both = np.bincount((keys[mine] + _VALUES * masks[mine]).ravel(), minlength=2 * _VALUES)  # normal values, then abnormal
        counts[:, subject] = both.reshape(2, _VALUES)[:, occupied]
    return SubjectCounts(tuple(names.tolist()), _value_of(occupied), counts[0], counts[1])


def count_scores(scores: np.ndarray, labels: np.ndarray, subjects: np.ndarray) -> SubjectCounts:
    """Count image scores; the distinct values come back as float64, which holds float32 exactly.

    Args:
        scores: (N,) finite.
        labels: (N,) 0 normal, 1 abnormal.
        subjects: (N,) the subject of each image.

    Raises:
        ValueError: lengths differ, another label, or a score is NaN or infinite.
    """
    if not len(scores) == len(labels) == len(subjects):
        raise ValueError(f"expected as many scores as labels and subjects, got {len(scores)}, {len(labels)}, {len(subjects)}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are NaN or infinite; count scored samples only")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("expected labels 0 (normal) or 1 (abnormal), got others or missing ones; leave unlabelled samples out")
    names, which = np.unique(np.asarray(subjects, str), return_inverse=True)
    values, position = np.unique(np.asarray(scores, float), return_inverse=True)
    counts = np.zeros((2, len(names), len(values)), np.int64)
    np.add.at(counts, (np.asarray(labels, int), which, position), 1)
    return SubjectCounts(tuple(names.tolist()), values, counts[0], counts[1])


def merge_counts(parts: Sequence[SubjectCounts]) -> SubjectCounts:
    """The counts of all parts together: subjects and values are united, equal ones add up.

    Raises:
        ValueError: there are no parts.
    """
    if not parts:
        raise ValueError("expected the counts of at least one part, got none")
    names, which = np.unique(np.concatenate([np.asarray(part.subjects, str) for part in parts]), return_inverse=True)
    values = np.unique(np.concatenate([part.values for part in parts]))
    normal, abnormal = (np.zeros((len(names), len(values)), np.int64) for _ in range(2))
    start = 0
    for part in parts:
        at = np.ix_(which[start : start + len(part.subjects)], np.searchsorted(values, part.values))
        normal[at] += part.normal
        abnormal[at] += part.abnormal
        start += len(part.subjects)
    return SubjectCounts(tuple(names.tolist()), values, normal, abnormal)


def _value_of(keys: np.ndarray) -> np.ndarray:
    """The scores of keys, the inverse of `order_key`, as float64."""
    keys = keys.astype(np.uint16)
    bits = np.where(keys & 0x8000, keys & np.uint16(0x7FFF), ~keys)
    return bits.view(np.float16).astype(float)
