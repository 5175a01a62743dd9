"""Groups dealt by shares: the divisor method of Webster and Sainte-Laguë, made stratified by a χ² distance to the wanted counts."""

import numpy as np

from methods.curation.grouped_samples import DEVELOPMENT, SPLITS, TEST, TRAIN, VALIDATION, Samples, type_codes
from methods.curation.split_config import SplitConfig, SplitError

_NEED = {0: (TRAIN, VALIDATION, TEST), 1: (TRAIN, TEST, VALIDATION)}  # who gets a group first when there are too few; by label


def deal_shares(rows: Samples, fixed: np.ndarray, config: SplitConfig) -> np.ndarray:
    """(G,) split names or None; `fixed` (G,) are those that are prescribed. How: `split_groups`. Raises `SplitError`: too few groups."""
    counts, label_of, weight = rows.strata()
    with_anomaly, known = np.any(counts[:, label_of == 1], axis=1), np.any(counts, axis=1)
    shares = np.array([config.train, config.validation, config.test])
    shares_of_abnormal = shares if config.train_on == "both" else shares * [0, 1, 1]
    allowed = np.where(with_anomaly[:, None], shares_of_abnormal > 0, shares > 0)
    allowed[fixed == DEVELOPMENT, TEST] = False
    chosen = np.full(len(rows.names), -1)
    for split, name in enumerate(SPLITS):
        chosen[fixed == name] = split
    free = known & (chosen < 0) & (fixed != "archive")
    stuck = free & with_anomaly & (fixed != DEVELOPMENT)
    if stuck.any() and not shares_of_abnormal.any():
        raise SplitError(f"{int(stuck.sum())} subject(s) have an abnormal sample and cannot train; give validation or test a share")
    free &= allowed.any(axis=1)
    if free.any():
        ratio = np.where(label_of[:, None] == 1, shares_of_abnormal / max(shares_of_abnormal.sum(), 1e-12), shares)
        wanted = counts[fixed != "archive"].sum(axis=0)[:, None] * ratio
        rank = np.random.default_rng(config.seed).permutation(len(free))
        dealt = np.where(free, -1, np.where(chosen < 0, len(SPLITS), chosen))  # what is not in the game goes to a split that is none
        deal(dealt, counts, allowed, wanted, weight=weight, rank=rank)
        need = {label: tuple(split for split in _NEED[label] if (shares_of_abnormal if label else shares)[split] > 0) for label in (0, 1)}
        fill_empty(dealt, with_anomaly.astype(int), need, allowed, counts.sum(axis=1), free)
        chosen = np.where(dealt < len(SPLITS), dealt, -1)
        _check_filled(chosen, with_anomaly, shares)
    return np.array([*SPLITS, None], object)[chosen]


def _check_filled(chosen: np.ndarray, with_anomaly: np.ndarray, shares: np.ndarray) -> None:
    used = chosen >= 0
    if shares[TRAIN] > 0 and not (chosen == TRAIN).any() and with_anomaly[used].all():
        raise SplitError(f"no subject without anomaly to train on: all {int(used.sum())} subjects have an abnormal sample")
    if not np.isin(np.flatnonzero(shares > 0), chosen).all():
        raise SplitError(f"{int(used.sum())} subject(s) cannot be divided into {int((shares > 0).sum())} splits; each needs one of its own")


def deal(chosen: np.ndarray, counts: np.ndarray, allowed: np.ndarray, wanted: np.ndarray, *, weight: np.ndarray, rank: np.ndarray) -> None:
    """Fill the −1 of `chosen` (G,) so that the sums of `counts` (G, K) over each split come near `wanted` (K, S)."""
    filled = np.zeros(wanted.shape)
    for split in range(wanted.shape[1]):
        filled[:, split] = counts[chosen == split].sum(axis=0)
    free = np.flatnonzero(chosen < 0)
    kinds = type_codes(np.hstack([counts[free], allowed[free]]))
    order = np.lexsort([rank[free], kinds, -counts[free].sum(axis=1), allowed[free].sum(axis=1)])
    for members in np.split(free[order], np.flatnonzero(np.diff(kinds[order])) + 1):
        if not len(members):
            continue
        splits = np.flatnonzero(allowed[members[0]])
        held = np.flatnonzero(counts[members[0]])
        v, w, T, F = counts[members[0], held], weight[held], wanted[np.ix_(held, splits)], filled[np.ix_(held, splits)]
        numbers = _level((w * v) @ ((F - T) / T), (w * v**2) @ (1 / T), len(members))
        filled[np.ix_(held, splits)] += np.outer(v, numbers)
        chosen[members] = np.repeat(splits, numbers)


def _level(a: np.ndarray, b: np.ndarray, m: int) -> np.ndarray:
    """Whole numbers x (S,) of sum m with the smallest Σ (a x + b x² / 2): equal marginal costs a + b x, rounded by Sainte-Laguë."""
    order = np.argsort(a, kind="stable")
    lambdas = (m + np.cumsum((a / b)[order])) / np.cumsum((1 / b)[order])
    x = np.floor(np.maximum((lambdas[np.flatnonzero(lambdas >= a[order])[-1]] - a) / b, 0) + 1e-9).astype(int)
    while x.sum() < m:
        x[np.argmin((a + b * (x + 0.5)).round(9))] += 1
    return x


def fill_empty(
    chosen: np.ndarray, label: np.ndarray, need: dict[int, tuple[int, ...]], allowed: np.ndarray, size: np.ndarray, free: np.ndarray
) -> None:
    """Give each split a group of each label, as far as there are groups, in the order of need: the smallest of the richest split."""
    splits = allowed.shape[1]
    for value, order in need.items():
        of_label = (label == value) & (chosen >= 0) & (chosen < splits)
        order = order[: int(of_label.sum())]
        for split in order:
            held = np.bincount(chosen[of_label], minlength=splits)
            giving = np.flatnonzero((held > 1) | ~np.isin(np.arange(splits), order))
            movable = np.flatnonzero(of_label & free & allowed[:, split] & np.isin(chosen, giving))
            if held[split] == 0 and len(movable):
                richest = movable[held[chosen[movable]] == held[chosen[movable]].max()]
                chosen[richest[np.argmin(size[richest])]] = split
