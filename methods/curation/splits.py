"""Splits by group: what belongs together (duplicates, a lesion, a person) is in one split, and what is learnt from is normal.

Shares or exact counts; both depend on the groups' ids, sizes and the seed, never on the order of rows.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from methods.curation.grouped_samples import DEVELOPMENT, SPLITS, Samples, as_text
from methods.curation.split_config import SplitConfig, SplitError
from methods.curation.split_counts import draw_counts
from methods.curation.split_shares import deal_shares

_PROTECTED = ("test", "validation", "train", DEVELOPMENT, "archive")  # of a conflict the first keeps its samples


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
    rows = Samples.of(group_ids, abnormal, sources=sources, findings=findings)
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
    rows = Samples.of(group_ids, abnormal, sources=sources, findings=None)
    before = _split_names(previous, rows, validation_from_train=False)
    fixed = np.where(np.asarray(pd.isna(before)), _split_names(prescribed, rows, config.validation_from_train), before)
    return _assign(rows, fixed, config, previous=before)


def _split_names(values: Any, rows: Samples, validation_from_train: bool) -> np.ndarray:
    """(N,) object: the prescribed split or None, with the training list marked where validation may be taken out of it."""
    if values is None:
        return np.full(len(rows.group), None, object)
    if len(values) != len(rows.group):
        raise SplitError(f"expected {len(rows.group)} splits, one a row, not {len(values)}")
    text = as_text(values)
    if (wrong := (~text.isin([*SPLITS, "archive"]) & text.notna()).to_numpy(bool)).any():
        raise SplitError(
            f"row {wrong.argmax()}: the split is {text[wrong.argmax()]!r}; expected train, validation, test, archive or nothing"
        )
    names = np.where(text.notna(), text.to_numpy(object), np.array(None, object))
    if validation_from_train:
        names[names == "train"] = DEVELOPMENT
    return names


def _fixed_names(rows: Samples, names: np.ndarray) -> np.ndarray:
    """(G,) the split that each group is prescribed to, the most protected one of several, or None."""
    fixed = np.full(len(rows.names), None, object)
    for name in reversed(_PROTECTED):
        fixed[rows.group[names == name]] = name
    return fixed


def _outvoted(names: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    agrees = (names == fixed) | ((names == DEVELOPMENT) & np.isin(fixed.astype(str), ["train", "validation"]))
    return np.asarray(~pd.isna(names) & ~agrees, bool)


def _assign(rows: Samples, names: np.ndarray, config: SplitConfig, *, previous: np.ndarray | None = None) -> np.ndarray:
    fixed = _fixed_names(rows, names)
    outvoted = _outvoted(names, fixed[rows.group])
    if outvoted.any() and config.on_conflict == "error":
        raise SplitError(_conflict_text(rows, names, outvoted, extended=previous is not None))
    if config.counts is not None and previous is not None:
        return np.where(outvoted, np.array(None, object), previous)
    rows = replace(rows, label=np.where(outvoted, -1, rows.label))
    unused = outvoted.copy()
    if config.counts is None:
        chosen = deal_shares(rows, fixed, config)
    else:
        chosen, uncounted = draw_counts(rows, fixed, config)
        unused |= uncounted
    chosen = np.where(fixed == "archive", "archive", chosen)[rows.group]
    if config.train_on == "normal":
        unused |= (chosen == "train") & (rows.label == 1)
    chosen[unused] = None
    return chosen


def _conflict_text(rows: Samples, names: np.ndarray, outvoted: np.ndarray, *, extended: bool) -> str:
    groups = np.unique(rows.group[outvoted])
    shown = []
    for group in groups[:5]:
        of_group = np.flatnonzero(rows.group == group)
        by_split = {str(names[row]): int(row) for row in of_group[::-1] if names[row] is not None}
        shown.append(f"{rows.names[group]!r} ({', '.join(f'{split}: row {row}' for split, row in sorted(by_split.items()))})")
    cause = "new samples join groups of different splits" if extended else "these groups are prescribed to several splits"
    return f"{cause}: {'; '.join(shown)}; {len(groups)} in all. Mend the source, or drop samples with split.on_conflict: exclude"
