"""Folds for cross-validation over whole groups."""

from typing import Any

import numpy as np
import pandas as pd

from methods.curation.grouped_samples import group_codes, tabulate
from methods.curation.split_config import SplitError
from methods.curation.split_shares import deal, fill_empty


def fold_groups(group_ids: Any, y: Any, *, k: int, seed: int) -> np.ndarray:
    """Stratified folds for cross-validation over whole groups, dealt as the shares of split_groups.

    Args:
        group_ids: (N,) str or int.
        y: (N,) label of each sample, of any type; null is a label too.
        k: number of folds, at least 2.
        seed: of the draw.

    Returns:
        (N,) int64 in [0, k).

    Raises:
        SplitError: a row without group id, or fewer groups than folds.
    """
    group, names = group_codes(group_ids)
    if not 2 <= k <= len(names):
        raise SplitError(f"{len(names)} group(s) cannot be divided into {k} folds; expected 2 to {len(names)}")
    labels, _ = pd.factorize(pd.Series(y).astype("string").fillna(""), sort=True)
    counts = tabulate(group, labels, len(names), labels.max() + 1)
    counts = np.hstack([counts, counts.sum(axis=1, keepdims=True)])
    wanted = np.repeat(counts.sum(axis=0)[:, None] / k, k, axis=1)
    folds = np.full(len(names), -1)
    rank = np.random.default_rng(seed).permutation(len(names))
    deal(folds, counts, np.ones((len(names), k), bool), wanted, weight=np.ones(len(wanted)), rank=rank)
    fill_empty(folds, np.zeros(len(names), int), {0: tuple(range(k))}, np.ones((len(names), k), bool), counts[:, -1], folds >= 0)
    return folds[group]
