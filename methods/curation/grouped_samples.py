"""Samples and their groups as numbers, which splits, folds and counts are worked out on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from methods.curation.split_config import SplitError, SplitName

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
DEVELOPMENT = "train or validation"  # an official training list out of which a validation split may be dealt


@dataclass(frozen=True)
class Samples:
    """Samples as numbers. `label` is 0 normal, 1 abnormal, −1 unknown; `names` are the groups' ids, sorted."""

    group: np.ndarray
    names: np.ndarray
    label: np.ndarray
    source: np.ndarray
    findings: np.ndarray | None  # "" where there is none

    @classmethod
    def of(cls, group_ids: Any, abnormal: Any, *, sources: Any, findings: Any) -> "Samples":
        """Of columns with a value a sample; see `split_groups`. Raises `SplitError`: columns of unequal length, a row without group."""
        group, names = group_codes(group_ids)
        for what, values in (("abnormal", abnormal), ("sources", sources), ("findings", findings)):
            if values is not None and len(values) != len(group):
                raise SplitError(f"expected {len(group)} values of {what}, one a row, not {len(values)}")
        label = pd.array(abnormal, dtype="boolean").astype("Int64").fillna(-1).to_numpy(np.int64)
        source = np.zeros(len(group), int) if sources is None else pd.factorize(as_text(sources).fillna(""), sort=True)[0]
        return cls(group, names, label, source, None if findings is None else as_text(findings).fillna("").to_numpy(object))

    def strata(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(G, K) samples of each group by label × source and by label, (K,) the label of each column and (K,) its weight.

        A label weighs as much as all its strata: else the rounding of many small sources adds up to another share of the whole.
        """
        sources = int(self.source.max(initial=0)) + 1
        known = self.label >= 0
        by_label = tabulate(self.group[known], self.label[known], len(self.names), 2)
        if sources == 1:
            return by_label, np.arange(2), np.ones(2)
        stratum = self.label[known] * sources + self.source[known]
        by_source = tabulate(self.group[known], stratum, len(self.names), 2 * sources)
        strata_of_label = by_source.any(axis=0).reshape(2, sources).sum(axis=1)
        return np.hstack([by_source, by_label]), np.r_[np.repeat([0, 1], sources), 0, 1], np.r_[np.ones(2 * sources), strata_of_label]


def group_codes(group_ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 number of each sample's group, and (G,) their ids, sorted as text. Raises `SplitError`: a row without group."""
    check_ids(pd.Series(group_ids), what="group id", rows=np.arange(len(group_ids)))
    codes, names = pd.factorize(as_text(group_ids), sort=True)
    return codes, np.asarray(names, dtype=object)


def as_text(values: Any) -> pd.Series:
    """(N,) values as text, null where they are."""
    if isinstance(values, pd.Series) and isinstance(values.dtype, pd.StringDtype):
        return values.reset_index(drop=True)
    return pd.Series(np.asarray(values, object)).astype("string")


def check_ids(ids: pd.Series, *, what: str, rows: np.ndarray) -> None:
    """Refuse ids that are null or blank; `rows` are the row numbers to name them by. Raises `SplitError`."""
    missing = ids.isna().to_numpy()
    if not pd.api.types.is_numeric_dtype(ids):
        missing = missing | (ids.astype("string").str.strip() == "").fillna(False).to_numpy(bool)
    if missing.any():
        raise SplitError(
            f"row {rows[missing.argmax()]} has no {what} ({int(missing.sum())} such row(s)); give each its person, "
            "or the most that is known to belong together (lesion, slide, file)"
        )


def tabulate(group: np.ndarray, column: np.ndarray, groups: int, columns: int) -> np.ndarray:
    """(groups, columns) int64: how many samples of each group are in each column."""
    return np.bincount(group * columns + column, minlength=groups * columns).reshape(groups, columns)


def type_codes(table: np.ndarray) -> np.ndarray:
    """(n,) equal numbers for equal rows; np.unique(axis=0) sorts whole rows and takes many times as long."""
    codes = np.zeros(len(table), np.int64)
    for column in table.T.astype(np.int64):
        if len(column) and column.min() != column.max():
            codes, _ = pd.factorize(codes * (column.max() + 1) + column)
    return codes
