"""Splits by group: what belongs together (duplicates, a lesion, a person) is in one split, and what is learnt from is normal.

Shares are dealt by the divisor method of Webster and Sainte-Laguë, made stratified by a χ² distance to the wanted counts; exact counts are
found by a random draw whose end an integer program repairs. Both depend on the groups' ids, sizes and the seed, never on the order of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator
from scipy.optimize import Bounds, LinearConstraint, milp

SplitName = Literal["train", "validation", "test"]
LeakKind = Literal["subject", "lesion", "slide", "duplicate", "group"]

_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_TRAIN, _VALIDATION, _TEST = range(3)
_DEVELOPMENT = "train or validation"  # an official training list out of which a validation split may be dealt
_PROTECTED = ("test", "validation", "train", _DEVELOPMENT, "archive")  # of a conflict the first keeps its samples
_NEED = {0: (_TRAIN, _VALIDATION, _TEST), 1: (_TRAIN, _TEST, _VALIDATION)}  # who gets a group first when there are too few; by label
# Groups of a split that are taken back before exact counts are solved for, None: all. Tries of one size are no waste: how long branch and
# bound takes has a heavy tail, which another order of the variables cuts off.
_POOLS = (16, 64, 256, *[None] * 16)
_NODES_MAX = 2_000  # of a try; a limit in nodes, not in seconds, so that a slow machine gives the same split

LEAK_KEYS: tuple[tuple[LeakKind, tuple[str, ...]], ...] = (
    ("subject", ("subject_id", "dataset")),
    ("lesion", ("lesion_id", "dataset")),
    ("slide", ("slide_id", "dataset")),
    ("duplicate", ("sha256", "frame", "level", "x_px", "y_px", "width_px", "height_px")),
    ("duplicate", ("duplicate_group",)),
    ("group", ("group_id",)),
)


class SplitError(ValueError):
    """Groups that cannot be divided as asked; the message names the row, the group or the nearest that is possible."""


class CountConfig(BaseModel):
    """Samples of one split. What is not named (a label, a finding) stays unused, also in the groups that are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normal: NonNegativeInt = Field(default=0, description="normal samples")
    abnormal: NonNegativeInt | dict[str, NonNegativeInt] = Field(default=0, description="abnormal samples, in all or by finding")
    abnormal_each: NonNegativeInt = Field(default=0, description="abnormal samples of each finding that the data hold")
    total: NonNegativeInt | None = Field(default=None, description="samples of both labels, in the ratio that the data have")

    @model_validator(mode="after")
    def _one_way(self) -> "CountConfig":
        if self.abnormal and self.abnormal_each:
            raise ValueError("give abnormal or abnormal_each, not both")
        if self.total is not None and (self.normal or self.abnormal or self.abnormal_each):
            raise ValueError("give total alone; with it the data decide how many are normal")
        return self


class SplitConfig(BaseModel):
    """Shares of the samples of each label and source; with train_on = normal the abnormal ones are shared by validation and test alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: float = Field(default=0.6, ge=0, le=1, description="share of the samples")
    validation: float = Field(default=0.2, ge=0, le=1, description="share of the samples")
    test: float = Field(default=0.2, ge=0, le=1, description="share of the samples")
    seed: int = Field(default=0, ge=0, description="of the draw")
    train_on: Literal["normal", "both"] = Field(
        default="normal", description="normal: no group with an abnormal sample trains; both: a classifier's splits, by label alike"
    )
    counts: dict[SplitName, CountConfig] | None = Field(
        default=None, description="exact numbers of samples instead of shares; what is left over is in no split"
    )
    on_conflict: Literal["error", "exclude"] = Field(
        default="error",
        description="of a group prescribed to several splits: error names it, exclude keeps only what is in test (else validation)",
    )
    validation_from_train: bool = Field(
        default=False, description="samples prescribed to train may be dealt to validation (official lists that have no validation)"
    )

    @model_validator(mode="after")
    def _sum_to_one(self) -> "SplitConfig":
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, not {self.train + self.validation + self.test:g}")
        return self

    @model_validator(mode="after")
    def _train_on_what_it_may(self) -> "SplitConfig":
        for name, count in (self.counts or {}).items():
            if count.total is not None and self.train_on == "normal":
                raise ValueError(f"counts.{name}.total counts both labels; it needs train_on: both")
            if name == "train" and self.train_on == "normal" and (count.abnormal or count.abnormal_each):
                raise ValueError("counts.train asks for abnormal samples; it needs train_on: both")
        return self


@dataclass(frozen=True)
class Leak:
    """Something that is in more than one split.

    Attributes:
        kind: what crosses: a subject, lesion or slide, a duplicate (exact content or a near-duplicate group), a group.
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


def split_groups(
    group_ids: Any, abnormal: Any, *, config: SplitConfig, sources: Any = None, prescribed: Any = None, findings: Any = None
) -> np.ndarray:
    """The split of each sample; all samples of a group share it.

    Shares: types of groups (those with the same numbers of samples by label and source) are dealt one after another, those that may go to
    fewer splits first, then the largest first; each goes where it makes Σ (count − wanted)² / wanted smallest, summed over the strata
    (label × source), the labels (as heavy as all their strata) and the splits. For one stratum that is the divisor method of Webster and
    Sainte-Laguë on sample counts: no split gets more than its share by more than its largest group. Within a type the seed decides. Where
    there are groups enough, each split gets one of each label.

    Counts: groups in random order, each source in turn, go to the split that lacks most; where that does not end exactly, the last ones
    are taken back and dealt by an integer program, more and more of them until it succeeds.

    Prescribed samples take their group along and count towards the shares. Of a group that is prescribed to train, abnormal samples stay
    unused unless train_on is both. With counts, a prescribed group is in its split or unused.

    Args:
        group_ids: (N,) str or int; connected components over duplicate ∪ lesion ∪ subject. Ids have to come from the content (such as the
            smallest sample_id of the group): with numbers in order of appearance the order of rows would matter after all.
        abnormal: (N,) bool, or null where unknown. Unknown samples take the split of their group; a group of which nothing is known is
            in no split unless prescribed.
        config: shares or counts, seed.
        sources: (N,) str, the data set of each sample.
        prescribed: (N,) "train", "validation", "test", "archive" or null.
        findings: (N,) str or null; only counts by finding ask for it.

    Returns:
        (N,) object: "train", "validation", "test", None (unused), or "archive" where prescribed.

    Raises:
        SplitError: a row without group id; a group prescribed to several splits; nothing normal to train on; fewer groups than splits;
            counts that whole groups cannot reach, with the nearest that they can.
    """
    rows = _Rows.of(group_ids, abnormal, sources=sources, findings=findings)
    return _assign(rows, _split_names(prescribed, rows, config.validation_from_train), config)


def extend_split(
    group_ids: Any, abnormal: Any, *, previous: Any, config: SplitConfig, sources: Any = None, prescribed: Any = None
) -> np.ndarray:
    """The splits of a grown archive: old samples stay where they are, only new groups are dealt, so that the shares are restored.

    A new sample of an old group takes its split; with train_on = normal an abnormal one that joins a group in train stays unused. With
    counts, which the old samples fill, new samples stay unused.

    Args:
        group_ids: (N,) as for split_groups, of old and new samples.
        abnormal: (N,) bool or null.
        previous: (N,) the split of each old sample, null for new ones.
        config: as for split_groups.
        sources: (N,) str.
        prescribed: (N,) of new samples; ignored where there is a previous split.

    Returns:
        (N,) object as split_groups.

    Raises:
        SplitError: as split_groups; or new samples join old groups of different splits (config.on_conflict).
    """
    rows = _Rows.of(group_ids, abnormal, sources=sources, findings=None)
    before = _split_names(previous, rows, validation_from_train=False)
    fixed = np.where(np.asarray(pd.isna(before)), _split_names(prescribed, rows, config.validation_from_train), before)
    return _assign(rows, fixed, config, previous=before)


def conflicting_samples(group_ids: Any, prescribed: Any, *, config: SplitConfig) -> np.ndarray:
    """(N,) bool: the samples that on_conflict = exclude drops, since their group is prescribed to a split that goes before theirs."""
    rows = _Rows.of(group_ids, np.zeros(len(group_ids), bool), sources=None, findings=None)
    names = _split_names(prescribed, rows, config.validation_from_train)
    return _outvoted(names, _fixed_names(rows, names)[rows.group])


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
    group, names = _group_codes(group_ids)
    if not 2 <= k <= len(names):
        raise SplitError(f"{len(names)} group(s) cannot be divided into {k} folds; expected 2 to {len(names)}")
    labels, _ = pd.factorize(pd.Series(y).astype("string").fillna(""), sort=True)
    counts = _tabulate(group, labels, len(names), labels.max() + 1)
    counts = np.hstack([counts, counts.sum(axis=1, keepdims=True)])
    wanted = np.repeat(counts.sum(axis=0)[:, None] / k, k, axis=1)
    folds = np.full(len(names), -1)
    rank = np.random.default_rng(seed).permutation(len(names))
    _deal(folds, counts, np.ones((len(names), k), bool), wanted, weight=np.ones(len(wanted)), rank=rank)
    _fill_empty(folds, np.zeros(len(names), int), {0: tuple(range(k))}, np.ones((len(names), k), bool), counts[:, -1], folds >= 0)
    return folds[group]


def split_subjects(subject_ids: np.ndarray, abnormal: np.ndarray, *, config: SplitConfig) -> np.ndarray:
    """split_groups where the subject is all that is known to belong together."""
    return split_groups(subject_ids, abnormal, config=config)


def leaking_subjects(subject_ids: np.ndarray, splits: np.ndarray) -> list[str]:
    """Subjects that are in more than one split, sorted; the empty list proves that none is."""
    table = pd.DataFrame({"subject_id": subject_ids, "split": splits})
    return [leak.key for leak in check_splits(table) if leak.kind == "subject"]


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
    used = table if len(rows) == len(table) else table.iloc[rows]
    _check_ids(used["subject_id"], what="subject_id", rows=rows)
    splits, names = pd.factorize(used["split"].astype(str), sort=True)
    leaks: list[Leak] = []
    for kind, columns in keys:
        there = [name for name in columns if name in used.columns and not (across_datasets and name == "dataset")]
        if there and there[0] == columns[0]:
            leaks += _leaks(kind, used, there, splits, np.asarray(names, str), rows)
    return leaks


# ---- rows and groups


@dataclass(frozen=True)
class _Rows:
    """Samples as numbers. `label` is 0 normal, 1 abnormal, −1 unknown; `names` are the groups' ids, sorted."""

    group: np.ndarray
    names: np.ndarray
    label: np.ndarray
    source: np.ndarray
    findings: np.ndarray | None  # "" where there is none

    @classmethod
    def of(cls, group_ids: Any, abnormal: Any, *, sources: Any, findings: Any) -> "_Rows":
        group, names = _group_codes(group_ids)
        for what, values in (("abnormal", abnormal), ("sources", sources), ("findings", findings)):
            if values is not None and len(values) != len(group):
                raise SplitError(f"expected {len(group)} values of {what}, one a row, not {len(values)}")
        label = pd.array(abnormal, dtype="boolean").astype("Int64").fillna(-1).to_numpy(np.int64)
        source = np.zeros(len(group), int) if sources is None else pd.factorize(_text(sources).fillna(""), sort=True)[0]
        return cls(group, names, label, source, None if findings is None else _text(findings).fillna("").to_numpy(object))

    def strata(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(G, K) samples of each group by label × source and by label, (K,) the label of each column and (K,) its weight.

        A label weighs as much as all its strata: else the rounding of many small sources adds up to another share of the whole.
        """
        sources = int(self.source.max(initial=0)) + 1
        known = self.label >= 0
        by_label = _tabulate(self.group[known], self.label[known], len(self.names), 2)
        if sources == 1:
            return by_label, np.arange(2), np.ones(2)
        stratum = self.label[known] * sources + self.source[known]
        by_source = _tabulate(self.group[known], stratum, len(self.names), 2 * sources)
        strata_of_label = by_source.any(axis=0).reshape(2, sources).sum(axis=1)
        return np.hstack([by_source, by_label]), np.r_[np.repeat([0, 1], sources), 0, 1], np.r_[np.ones(2 * sources), strata_of_label]


def _group_codes(group_ids: Any) -> tuple[np.ndarray, np.ndarray]:
    _check_ids(pd.Series(group_ids), what="group id", rows=np.arange(len(group_ids)))
    codes, names = pd.factorize(_text(group_ids), sort=True)
    return codes, np.asarray(names, dtype=object)


def _text(values: Any) -> pd.Series:
    return pd.Series(np.asarray(values, object)).astype("string")


def _check_ids(ids: pd.Series, *, what: str, rows: np.ndarray) -> None:
    missing = ids.isna().to_numpy()
    if not pd.api.types.is_numeric_dtype(ids):
        missing = missing | (ids.astype("string").str.strip().fillna("") == "").to_numpy(bool)
    if missing.any():
        raise SplitError(
            f"row {rows[missing.argmax()]} has no {what} ({int(missing.sum())} such row(s)); give each its person, "
            "or the most that is known to belong together (lesion, slide, file)"
        )


def _tabulate(group: np.ndarray, column: np.ndarray, groups: int, columns: int) -> np.ndarray:
    return np.bincount(group * columns + column, minlength=groups * columns).reshape(groups, columns)


def _split_names(values: Any, rows: _Rows, validation_from_train: bool) -> np.ndarray:
    """(N,) object: the prescribed split or None, with the training list marked where validation may be taken out of it."""
    if values is None:
        return np.full(len(rows.group), None, object)
    if len(values) != len(rows.group):
        raise SplitError(f"expected {len(rows.group)} splits, one a row, not {len(values)}")
    text = _text(values)
    if (wrong := (~text.isin([*_SPLITS, "archive"]) & text.notna()).to_numpy(bool)).any():
        raise SplitError(
            f"row {wrong.argmax()}: the split is {text[wrong.argmax()]!r}; expected train, validation, test, archive or nothing"
        )
    names = np.where(text.notna(), text.to_numpy(object), np.array(None, object))
    if validation_from_train:
        names[names == "train"] = _DEVELOPMENT
    return names


def _fixed_names(rows: _Rows, names: np.ndarray) -> np.ndarray:
    """(G,) the split that each group is prescribed to, the most protected one of several, or None."""
    fixed = np.full(len(rows.names), None, object)
    for name in reversed(_PROTECTED):
        fixed[rows.group[names == name]] = name
    return fixed


def _outvoted(names: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    agrees = (names == fixed) | ((names == _DEVELOPMENT) & np.isin(fixed.astype(str), ["train", "validation"]))
    return np.asarray(~pd.isna(names) & ~agrees, bool)


def _assign(rows: _Rows, names: np.ndarray, config: SplitConfig, *, previous: np.ndarray | None = None) -> np.ndarray:
    fixed = _fixed_names(rows, names)
    outvoted = _outvoted(names, fixed[rows.group])
    if outvoted.any() and config.on_conflict == "error":
        raise SplitError(_conflict_text(rows, names, outvoted, extended=previous is not None))
    if config.counts is not None and previous is not None:
        return np.where(outvoted, np.array(None, object), previous)
    rows = replace(rows, label=np.where(outvoted, -1, rows.label))
    unused = outvoted.copy()
    if config.counts is None:
        chosen = _by_shares(rows, fixed, config)
    else:
        chosen, uncounted = _by_counts(rows, fixed, config)
        unused |= uncounted
    chosen = np.where(fixed == "archive", "archive", chosen)[rows.group]
    if config.train_on == "normal":
        unused |= (chosen == "train") & (rows.label == 1)
    chosen[unused] = None
    return chosen


def _conflict_text(rows: _Rows, names: np.ndarray, outvoted: np.ndarray, *, extended: bool) -> str:
    groups = np.unique(rows.group[outvoted])
    shown = []
    for group in groups[:5]:
        of_group = np.flatnonzero(rows.group == group)
        by_split = {str(names[row]): int(row) for row in of_group[::-1] if names[row] is not None}
        shown.append(f"{rows.names[group]!r} ({', '.join(f'{split}: row {row}' for split, row in sorted(by_split.items()))})")
    cause = "new samples join groups of different splits" if extended else "these groups are prescribed to several splits"
    return f"{cause}: {'; '.join(shown)}; {len(groups)} in all. Mend the source, or drop samples with on_conflict: exclude"


# ---- shares


def _by_shares(rows: _Rows, fixed: np.ndarray, config: SplitConfig) -> np.ndarray:
    counts, label_of, weight = rows.strata()
    with_anomaly, known = np.any(counts[:, label_of == 1], axis=1), np.any(counts, axis=1)
    shares = np.array([config.train, config.validation, config.test])
    shares_of_abnormal = shares if config.train_on == "both" else shares * [0, 1, 1]
    allowed = np.where(with_anomaly[:, None], shares_of_abnormal > 0, shares > 0)
    allowed[fixed == _DEVELOPMENT, _TEST] = False
    chosen = np.full(len(rows.names), -1)
    for split, name in enumerate(_SPLITS):
        chosen[fixed == name] = split
    free = known & (chosen < 0) & (fixed != "archive")
    stuck = free & with_anomaly & (fixed != _DEVELOPMENT)
    if stuck.any() and not shares_of_abnormal.any():
        raise SplitError(f"{int(stuck.sum())} subject(s) have an abnormal sample and cannot train; give validation or test a share")
    free &= allowed.any(axis=1)
    if free.any():
        ratio = np.where(label_of[:, None] == 1, shares_of_abnormal / max(shares_of_abnormal.sum(), 1e-12), shares)
        wanted = counts[fixed != "archive"].sum(axis=0)[:, None] * ratio
        rank = np.random.default_rng(config.seed).permutation(len(free))
        dealt = np.where(free, -1, np.where(chosen < 0, len(_SPLITS), chosen))  # what is not in the game goes to a split that is none
        _deal(dealt, counts, allowed, wanted, weight=weight, rank=rank)
        need = {label: tuple(split for split in _NEED[label] if (shares_of_abnormal if label else shares)[split] > 0) for label in (0, 1)}
        _fill_empty(dealt, with_anomaly.astype(int), need, allowed, counts.sum(axis=1), free)
        chosen = np.where(dealt < len(_SPLITS), dealt, -1)
        _check_filled(chosen, with_anomaly, shares)
    return np.array([*_SPLITS, None], object)[chosen]


def _check_filled(chosen: np.ndarray, with_anomaly: np.ndarray, shares: np.ndarray) -> None:
    used = chosen >= 0
    if shares[_TRAIN] > 0 and not (chosen == _TRAIN).any() and with_anomaly[used].all():
        raise SplitError(f"no subject without anomaly to train on: all {int(used.sum())} subjects have an abnormal sample")
    if not np.isin(np.flatnonzero(shares > 0), chosen).all():
        raise SplitError(f"{int(used.sum())} subject(s) cannot be divided into {int((shares > 0).sum())} splits; each needs one of its own")


def _deal(chosen: np.ndarray, counts: np.ndarray, allowed: np.ndarray, wanted: np.ndarray, *, weight: np.ndarray, rank: np.ndarray) -> None:
    """Fill the −1 of `chosen` (G,) so that the sums of `counts` (G, K) over each split come near `wanted` (K, S)."""
    filled = np.zeros(wanted.shape)
    for split in range(wanted.shape[1]):
        filled[:, split] = counts[chosen == split].sum(axis=0)
    free = np.flatnonzero(chosen < 0)
    kinds = _type_codes(np.hstack([counts[free], allowed[free]]))
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


def _type_codes(table: np.ndarray) -> np.ndarray:
    """(n,) equal numbers for equal rows; np.unique(axis=0) sorts whole rows and takes many times as long."""
    codes = np.zeros(len(table), np.int64)
    for column in table.T.astype(np.int64):
        if len(column) and column.min() != column.max():
            codes, _ = pd.factorize(codes * (column.max() + 1) + column)
    return codes


def _fill_empty(
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


# ---- exact counts


@dataclass(frozen=True)
class _Want:
    """One count that is asked for: `held` (G,) are the samples that a group would bring."""

    split: int
    what: str
    target: int
    held: np.ndarray
    rows: np.ndarray = field(repr=False)  # (N,) bool: the samples that count

    def __str__(self) -> str:
        return f"{_SPLITS[self.split]}: {self.target} {self.what}"


def _by_counts(rows: _Rows, fixed: np.ndarray, config: SplitConfig) -> tuple[np.ndarray, np.ndarray]:
    """(G,) split names or None, and (N,) the samples that no count asks for."""
    wants = _wants(rows, config)
    with_anomaly = np.isin(np.arange(len(rows.names)), rows.group[rows.label == 1])
    allowed = np.ones((len(rows.names), len(_SPLITS)), bool)
    for split, name in enumerate(_SPLITS):
        allowed[:, split] = pd.isna(fixed) | (fixed == name) | ((fixed == _DEVELOPMENT) & (name != "test"))
    if config.train_on == "normal":
        allowed[with_anomaly & (fixed != "train"), _TRAIN] = False
    for split in range(len(_SPLITS)):
        allowed[:, split] &= np.any([want.held > 0 for want in wants if want.split == split] or [np.zeros(len(with_anomaly), bool)], axis=0)
    rng = np.random.default_rng(config.seed)
    chosen = _draw_counts(wants, allowed, _interleaved(rows, rng), rng)
    asked = np.zeros(len(rows.group), bool)
    for want in wants:
        asked |= want.rows & (chosen[rows.group] == want.split)
    return np.array([*_SPLITS, None], object)[chosen], ~asked


def _wants(rows: _Rows, config: SplitConfig) -> list[_Want]:
    counts = config.counts or {}
    totals = _shared_totals({name: count.total for name, count in counts.items() if count.total is not None}, rows)
    wants = []
    for name, count in counts.items():
        for what, target, of in _named_counts(count, totals.get(name), rows):
            held = np.bincount(rows.group[of], minlength=len(rows.names))
            wants.append(_Want(_SPLITS.index(name), what, target, held, of))
    if not wants:
        raise SplitError("counts ask for no sample; give at least one split a number")
    return wants


def _named_counts(count: CountConfig, total: tuple[int, int] | None, rows: _Rows) -> list[tuple[str, int, np.ndarray]]:
    """(name, number, (N,) bool) of each count above 0; a count of 0 is no wish: such samples stay unused."""
    normal, abnormal = (count.normal, count.abnormal) if total is None else total
    is_abnormal = rows.label == 1
    named: list[tuple[str, int, np.ndarray]] = [("normal", normal, rows.label == 0)]
    if isinstance(abnormal, int) and not count.abnormal_each:
        named.append(("abnormal", abnormal, is_abnormal))
    else:
        if rows.findings is None:
            raise SplitError("counts by finding need the findings of the samples")
        of_all = sorted(set(rows.findings[is_abnormal].tolist()) - {""})
        each = abnormal if isinstance(abnormal, dict) else dict.fromkeys(of_all, count.abnormal_each)
        named += [(finding, number, is_abnormal & (rows.findings == finding)) for finding, number in each.items()]
    return [entry for entry in named if entry[1] > 0]


def _shared_totals(totals: dict[SplitName, int], rows: _Rows) -> dict[SplitName, tuple[int, int]]:
    """(normal, abnormal) of each split, abnormal by largest remainder in the ratio of the data."""
    known, abnormal_known = int((rows.label >= 0).sum()), int((rows.label == 1).sum())
    if sum(totals.values()) > known:
        raise SplitError(f"{sum(totals.values())} samples asked, {known} have a label")
    exact = {name: total * abnormal_known / max(known, 1) for name, total in totals.items()}
    abnormal = {name: int(value) for name, value in exact.items()}
    rest = round(sum(exact.values())) - sum(abnormal.values())
    for name in sorted(exact, key=lambda name: abnormal[name] - exact[name])[:rest]:
        abnormal[name] += 1
    return {name: (total - abnormal[name], abnormal[name]) for name, total in totals.items()}


def _interleaved(rows: _Rows, rng: np.random.Generator) -> np.ndarray:
    """(G,) groups in random order with every source in proportion at each point of it."""
    source = np.zeros(len(rows.names), int)
    np.maximum.at(source, rows.group, rows.source)  # the source of a group of several: any, as long as the order of rows is none
    shuffled = rng.permutation(len(source))
    place = pd.Series(source[shuffled]).groupby(source[shuffled]).cumcount().to_numpy()
    return shuffled[np.argsort((place + rng.random(len(source))) / np.bincount(source)[source[shuffled]], kind="stable")]


def _draw_counts(wants: list[_Want], allowed: np.ndarray, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(G,) split of each group, −1 unused, so that every count is met exactly."""
    held = np.stack([want.held for want in wants], axis=1)  # (G, W)
    target = np.array([want.target for want in wants])
    split_of = np.array([want.split for want in wants])
    _check_reachable(wants, allowed)
    chosen, place = _fill_at_random(held, target, split_of, allowed, order)
    if (_sums(held, chosen, split_of) == target).all():
        return chosen
    impossible = False
    for pool in _POOLS:
        kept = np.full(len(chosen), -1) if pool is None else np.where(_is_early(chosen, place, pool), chosen, -1)
        lacking = target - _sums(held, kept, split_of)
        solved, none_exists = _solve(held, lacking, split_of, allowed & (kept < 0)[:, None], order, rng)
        if solved is not None:
            return np.where(kept < 0, solved, kept)
        if impossible := none_exists and not (kept >= 0).any():
            break
    nearest, _ = _solve(held, target, split_of, allowed, order, rng, exact=False)
    sums = None if nearest is None else _sums(held, nearest, split_of)
    raise SplitError(_unmet_text(wants, impossible, sums))


def _fill_at_random(
    held: np.ndarray, target: np.ndarray, split_of: np.ndarray, allowed: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each group in turn to the split that lacks most of its count and has room for it: (G,) split or −1, and (G,) when it was drawn."""
    wants_of = [np.flatnonzero(split_of == split).tolist() for split in range(len(_SPLITS))]
    lacking, asked = target.tolist(), target.tolist()
    chosen, place = np.full(len(order), -1), np.zeros(len(order), int)
    place[order] = np.arange(len(order))
    for group, row, may in zip(order.tolist(), held[order].tolist(), allowed[order].tolist(), strict=True):
        best, lacks_most = -1, 0.0
        for split, wants in enumerate(wants_of):
            if may[split] and all(row[want] <= lacking[want] for want in wants):
                lacks = max((lacking[want] / asked[want] for want in wants if row[want]), default=0.0)
                best, lacks_most = (split, lacks) if lacks > lacks_most else (best, lacks_most)
        if best >= 0:
            chosen[group] = best
            for want in wants_of[best]:
                lacking[want] -= row[want]
    return chosen, place


def _is_early(chosen: np.ndarray, place: np.ndarray, pool: int) -> np.ndarray:
    """(G,) bool: drawn, and not among the last `pool` of its split."""
    early = chosen >= 0
    for split in range(len(_SPLITS)):
        drawn = np.flatnonzero(chosen == split)
        early[drawn[np.argsort(-place[drawn])[:pool]]] = False
    return early


def _sums(held: np.ndarray, chosen: np.ndarray, split_of: np.ndarray) -> np.ndarray:
    return np.array([held[chosen == split, want].sum() for want, split in enumerate(split_of)])


def _solve(
    held: np.ndarray,
    target: np.ndarray,
    split_of: np.ndarray,
    allowed: np.ndarray,
    order: np.ndarray,
    rng: np.random.Generator,
    *,
    exact: bool = True,
) -> tuple[np.ndarray | None, bool]:
    """Choose among the allowed groups those that sum to `target` (W,): (G,) splits or None, and whether it is proved that there are none.

    An integer program over types of groups: x[t, s] groups of type t go to split s, Σ_s x[t, s] ≤ how many there are. With exact = False
    the sums come as near as they can (least Σ |sum − target|).
    """
    free = order[allowed[order].any(axis=1)]
    if not len(free):
        return None, True
    kinds = _type_codes(np.hstack([held[free], allowed[free]]))
    _, first, number = np.unique(kinds, return_index=True, return_counts=True)
    variables = np.argwhere(allowed[free[first]])  # (V, 2) type and split
    types, splits = rng.permutation(variables).T
    sums = held[free[first]][types].T * (split_of[:, None] == splits)  # (W, V)
    at_most = (np.arange(len(first))[:, None] == types).astype(float)  # (types, V)
    slack = np.eye(len(target)) if not exact else np.zeros((len(target), 0))
    beside = np.zeros(2 * slack.shape[1])
    result = milp(
        np.r_[np.zeros(len(types)), beside + 1],
        constraints=[
            LinearConstraint(np.hstack([sums, slack, -slack]), target, target),
            LinearConstraint(np.hstack([at_most, np.zeros((len(first), len(beside)))]), 0, number),
        ],
        integrality=np.r_[np.ones(len(types)), beside],
        bounds=Bounds(0, np.r_[number[types].astype(float), beside + np.inf]),
        options={"node_limit": _NODES_MAX},
    )
    x = None if result.x is None else np.rint(result.x[: len(types)]).astype(int)
    if x is None or (exact and (sums @ x != target).any()):
        return None, result.status == 2  # 2: infeasible
    chosen = np.full(len(held), -1)
    for kind in range(len(first)):
        mine = types == kind
        members = free[kinds == kinds[first[kind]]]  # in random order
        chosen[members[: x[mine].sum()]] = np.repeat(splits[mine], x[mine])
    return chosen, False


def _check_reachable(wants: list[_Want], allowed: np.ndarray) -> None:
    """Each count by itself must be a sum of whole groups (subset sum by dynamic programming)."""
    wrong = []
    for want in wants:
        sizes = want.held[allowed[:, want.split]]
        if sizes.sum() < want.target:
            wrong.append(f"{want} asked, only {int(sizes.sum())} are there for it")
        elif nearest := _nearest_sums(sizes, want.target):
            wrong.append(f"{want} asked, whole groups reach {' or '.join(str(value) for value in nearest)}")
    for what in sorted({want.what for want in wants}):
        of = [want for want in wants if want.what == what]
        asked, there = sum(want.target for want in of), int(of[0].held[allowed[:, [want.split for want in of]].any(axis=1)].sum())
        if len(of) > 1 and asked > there:
            wrong.append(f"{asked} {what} asked in all, only {there} are there for it")
    if wrong:
        raise SplitError(f"counts cannot be met: {'; '.join(wrong)}. Ask for these numbers, or for shares")


def _nearest_sums(sizes: np.ndarray, target: int) -> list[int]:
    """The sums of some of `sizes` next below and above `target`; the empty list if `target` is one. Bit i of `sums`: i is reachable."""
    sums = 1
    for size, number in zip(*np.unique(sizes[sizes > 0], return_counts=True), strict=True):
        left, step = int(number), 1
        while left:  # n equal sizes as 1 + 2 + 4 + … + rest of them
            taken = min(step, left)
            sums |= sums << int(size) * taken
            left, step = left - taken, 2 * step
    if sums >> target & 1:
        return []
    below, above = sums & ((1 << target) - 1), sums >> target
    return [below.bit_length() - 1, target + (above & -above).bit_length() - 1]


def _unmet_text(wants: list[_Want], impossible: bool, nearest: np.ndarray | None) -> str:
    asked = "; ".join(str(want) for want in wants)
    text = f"counts cannot be met together ({asked})" if impossible else f"no division was found that meets the counts together ({asked})"
    if nearest is not None:
        text += f"; the nearest found: {'; '.join(str(replace(want, target=int(n))) for want, n in zip(wants, nearest, strict=True))}"
    return f"{text}. Ask for these numbers, or for shares"


# ---- leaks


def _leaks(kind: LeakKind, used: pd.DataFrame, columns: list[str], splits: np.ndarray, names: np.ndarray, rows: np.ndarray) -> list[Leak]:
    codes, _ = pd.factorize(used[columns[0]])
    there = np.flatnonzero(codes >= 0)
    codes = codes[there]
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
    if "sha256" in values:
        boxes = values.drop(columns="sha256").itertuples(index=False)
        return [
            f"{str(sha256)[:16]}… ({', '.join(str(value) for value in box if value is not None)})"
            for sha256, box in zip(values["sha256"], boxes, strict=True)
        ]
    if "dataset" not in values:
        return [str(key) for key in values.iloc[:, 0]]
    return [str(key) if dataset is None else f"{dataset}/{key}" for key, dataset in zip(values.iloc[:, 0], values["dataset"], strict=True)]
