"""Groups drawn for splits until exact counts are met: at random, and where that does not end exactly, by an integer program."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, milp

from methods.curation.grouped_samples import DEVELOPMENT, SPLITS, TRAIN, Samples, type_codes
from methods.curation.split_config import CountConfig, SplitConfig, SplitError, SplitName

# Groups of a split that are taken back before exact counts are solved for, None: all. Tries of one size are no waste: how long branch and
# bound takes has a heavy tail, which another order of the variables cuts off.
_POOLS = (16, 64, 256, *[None] * 16)
_NODES_MAX = 2_000  # of a try; a limit in nodes, not in seconds, so that a slow machine gives the same split


@dataclass(frozen=True)
class _Want:
    """One count that is asked for: `held` (G,) are the samples that a group would bring."""

    split: int
    what: str
    target: int
    held: np.ndarray
    rows: np.ndarray = field(repr=False)  # (N,) bool: the samples that count

    def __str__(self) -> str:
        return f"{SPLITS[self.split]}: {self.target} {self.what}"


def draw_counts(rows: Samples, fixed: np.ndarray, config: SplitConfig) -> tuple[np.ndarray, np.ndarray]:
    """(G,) split names or None, and (N,) bool: the samples that no count asks for; see `split_groups`.

    Raises:
        SplitError: counts that whole groups cannot reach, with the nearest that they can.
    """
    wants = _wants(rows, config)
    with_anomaly = np.isin(np.arange(len(rows.names)), rows.group[rows.label == 1])
    allowed = np.ones((len(rows.names), len(SPLITS)), bool)
    for split, name in enumerate(SPLITS):
        allowed[:, split] = pd.isna(fixed) | (fixed == name) | ((fixed == DEVELOPMENT) & (name != "test"))
    if config.train_on == "normal":
        allowed[with_anomaly & (fixed != "train"), TRAIN] = False
    for split in range(len(SPLITS)):
        allowed[:, split] &= np.any([want.held > 0 for want in wants if want.split == split] or [np.zeros(len(with_anomaly), bool)], axis=0)
    rng = np.random.default_rng(config.seed)
    source = _sources(rows)
    chosen = _draw(wants, allowed, source, _interleaved(source, rng), rng)
    asked = np.zeros(len(rows.group), bool)
    for want in wants:
        asked |= want.rows & (chosen[rows.group] == want.split)
    return np.array([*SPLITS, None], object)[chosen], ~asked


def _wants(rows: Samples, config: SplitConfig) -> list[_Want]:
    counts = config.counts or {}
    totals = _shared_totals({name: count.total for name, count in counts.items() if count.total is not None}, rows)
    wants = []
    for name, count in counts.items():
        for what, target, of in _named_counts(count, totals.get(name), rows):
            held = np.bincount(rows.group[of], minlength=len(rows.names))
            wants.append(_Want(SPLITS.index(name), what, target, held, of))
    if not wants:
        raise SplitError("counts ask for no sample; give at least one split a number")
    return wants


def _named_counts(count: CountConfig, total: tuple[int, int] | None, rows: Samples) -> list[tuple[str, int, np.ndarray]]:
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


def _shared_totals(totals: dict[SplitName, int], rows: Samples) -> dict[SplitName, tuple[int, int]]:
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


def _sources(rows: Samples) -> np.ndarray:
    """(G,) the source of each group; of a group of several any, as long as the order of rows is none."""
    source = np.zeros(len(rows.names), int)
    np.maximum.at(source, rows.group, rows.source)
    return source


def _interleaved(source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(G,) groups in random order with every source in proportion at each point of it."""
    shuffled = rng.permutation(len(source))
    place = pd.Series(source[shuffled]).groupby(source[shuffled]).cumcount().to_numpy()
    return shuffled[np.argsort((place + rng.random(len(source))) / np.bincount(source)[source[shuffled]], kind="stable")]


def _draw(wants: list[_Want], allowed: np.ndarray, source: np.ndarray, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(G,) split of each group, −1 unused, so that every count is met exactly."""
    held = np.stack([want.held for want in wants], axis=1)  # (G, W)
    target = np.array([want.target for want in wants])
    split_of = np.array([want.split for want in wants])
    _check_reachable(wants, allowed)
    chosen, place = _fill_at_random(held, target, split_of, allowed, source, order)
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
    held: np.ndarray, target: np.ndarray, split_of: np.ndarray, allowed: np.ndarray, source: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each group in turn to a split that has room for it: (G,) split or −1, and (G,) when it was drawn.

    To the one that lacks most of what it should have of the group's source, which is the source's share of all samples that count: else
    a source of large groups would come to lie in the largest split alone.
    """
    wants_of = [np.flatnonzero(split_of == split).tolist() for split in range(len(SPLITS))]
    there = np.stack([np.bincount(source, held[:, want] * allowed[:, split]) for want, split in enumerate(split_of)])  # (W, sources)
    due = target[:, None] * there / np.maximum(there.sum(axis=1, keepdims=True), 1)
    lacking, asked, owed = target.tolist(), due.tolist(), due.tolist()
    chosen, place = np.full(len(order), -1), np.zeros(len(order), int)
    place[order] = np.arange(len(order))
    for group, of, row, may in zip(order.tolist(), source[order].tolist(), held[order].tolist(), allowed[order].tolist(), strict=True):
        best, lacks_most = -1, -np.inf
        for split, wants in enumerate(wants_of):
            if may[split] and all(row[want] <= lacking[want] for want in wants):
                lacks = max((owed[want][of] / asked[want][of] for want in wants if row[want]), default=-np.inf)
                best, lacks_most = (split, lacks) if lacks > lacks_most else (best, lacks_most)
        if best >= 0:
            chosen[group] = best
            for want in wants_of[best]:
                lacking[want] -= row[want]
                owed[want][of] -= row[want]
    return chosen, place


def _is_early(chosen: np.ndarray, place: np.ndarray, pool: int) -> np.ndarray:
    """(G,) bool: drawn, and not among the last `pool` of its split."""
    early = chosen >= 0
    for split in range(len(SPLITS)):
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
    kinds = type_codes(np.hstack([held[free], allowed[free]]))
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
