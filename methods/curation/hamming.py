"""Exact search of hashes that differ in few bits: multi-index hashing (Norouzi, Punjani and Fleet 2014), compiled."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import comb
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from methods.curation.components import find_root
from methods.curation.hashing import compiled

BITS = 64
RADIUS = 8  # bits of 64: what rescaling and recompression change stays below, what two pictures share by chance far above
_WIDEST = 22  # bits of a key: a table of starts of 16 MiB
_HEAVY = 4096  # comparisons of two buckets from which on it pays to ask first who is joined already; also the longest bucket laid flat
_FLAT = 2048  # hashes laid side by side: they stay in the first cache
_FEWER_THAN_COMPILING = 1024  # hashes that are compared all with all before the compiler, which takes seconds once, would be done
_FEW, _MANY = 1000, 100_000  # hashes that are worth a second thread; where it needs a copy of the forest of a whole archive
_LINE = 8  # hashes in a line of cache
_PADDING = 8  # hashes that are read at once, also behind the last one
_VISIT_NS, _CHECK_NS, _SORT_NS = 5.0, 0.17, 15.0  # measured; half of it, because each two buckets meet once


def near_pairs(hashes: np.ndarray, *, radius: int = RADIUS, variants: np.ndarray | None = None, threads: int | None = None) -> np.ndarray:
    """All pairs of hashes that differ in at most `radius` bits, exactly as a comparison of all with all finds them.

    Grows with the number of pairs found, which is quadratic where many hashes are the same; `group_near` is not.

    Args:
        hashes: (n,) uint64.
        radius: bits.
        variants: (n, 8) uint64 of `dihedral_hashes`, to find flipped and turned pictures too: i < j are a pair if any variant of j is near
            the hash of i. (The later one's variants, so that pictures added to an archive need only its hashes.)
        threads: how many to use; all cores if None.

    Returns:
        (m, 2) int64, i < j in each row, rows sorted and unique.

    Raises:
        ValueError: hashes that are not (n,) uint64, variants of another shape, a radius outside [0, 64].
    """
    hashes, queries, rows = _checked(hashes), *_queries(hashes, variants)
    if len(hashes) <= _FEWER_THAN_COMPILING:
        return _compare_all(hashes, queries, rows, radius)
    found = _Segment.build(hashes, radius, threads).match(queries, rows, threads, earlier=True)
    return np.unique(found[:, ::-1], axis=0) if len(found) else found


def group_near(hashes: np.ndarray, *, radius: int = RADIUS, variants: np.ndarray | None = None, threads: int | None = None) -> np.ndarray:
    """The connected components of the pairs of `near_pairs`, without listing the pairs.

    Identical hashes are collapsed first, and hashes of crowded neighbourhoods that are joined already are not compared again, so that
    many copies of one picture cost no more than many pictures.

    Args:
        hashes: (n,) uint64.
        radius: bits.
        variants: (n, 8) uint64 as of `near_pairs`.
        threads: how many to use; all cores if None.

    Returns:
        (n,) int64 labels, numbered by first appearance.

    Raises:
        ValueError: as `near_pairs`.
    """
    hashes = _checked(hashes)
    first = _first_of_each(hashes)
    kept = np.flatnonzero(first == np.arange(len(hashes)))
    parent = first.astype(np.int32)
    if variants is None:
        _unite_trees(parent, _components(hashes[kept], radius, threads), kept)
    else:
        queries, rows = _queries(hashes, variants)
        segment = _Segment.build(hashes[kept], radius, threads, rows=kept)
        segment.match(queries, rows, threads, earlier=True, parent=parent)
    return number_trees(parent)


class HammingIndex:
    """Hashes in which near ones are found without looking at each, and to which more can be added.

    Multi-index hashing (Norouzi, Punjani and Fleet 2014): hashes that differ in at most r bits differ in at most r_c bits of one of m
    parts, if Σ(r_c + 1) > r; each part has a table of its hashes sorted by the part. Ours: parts of unequal width, chosen with m by the
    number of hashes, and bits dealt to them so that each gets its share of those that vary.

    Hashes are kept in runs, each with its tables; adding makes a run and unites the last two while they are of like size, so that a hash
    is sorted anew a logarithmic number of times. Safe to read from many threads; pickles.

    Args:
        hashes: (n,) uint64.
        radius: bits.
        threads: how many to use; all cores if None.

    Raises:
        ValueError: hashes that are not (n,) uint64, a radius outside [0, 64].
    """

    def __init__(self, hashes: np.ndarray, *, radius: int = RADIUS, threads: int | None = None) -> None:
        self.radius, self._threads = radius, threads
        self._runs: list[_Segment] = [_Segment.build(_checked(hashes), radius, threads)]

    def __len__(self) -> int:
        return sum(len(run.hashes) for run in self._runs)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(run.nbytes for run in self._runs)

    def match(self, new_hashes: np.ndarray, *, variants: np.ndarray | None = None) -> np.ndarray:
        """Pairs of new hashes and those in the index, within the radius; the new ones are not added.

        Args:
            new_hashes: (n,) uint64.
            variants: (n, 8) uint64 of `dihedral_hashes`, to match all of them.

        Returns:
            (m, 2) int64: position among the new, position in the index; rows sorted and unique.

        Raises:
            ValueError: not (n,) uint64, variants of another shape.
        """
        queries, rows = _queries(_checked(new_hashes), variants)
        found = [run.match(queries, rows, self._threads) for run in self._runs]
        pairs = np.concatenate([pairs + np.array([0, offset]) for pairs, offset in zip(found, self._offsets(), strict=True)])
        return np.unique(pairs, axis=0) if len(pairs) else pairs

    def join(self, new_hashes: np.ndarray, labels: np.ndarray, *, variants: np.ndarray | None = None) -> np.ndarray:
        """The groups of old and new hashes together, from the groups of the old ones; no old pair is looked at again.

        `index.join(new, group_near(old))` is `group_near` of old and new. The new ones are not added.

        Args:
            new_hashes: (n,) uint64.
            labels: (len(index),) int64 groups of the hashes in the index, by `group_near` or joined further.
            variants: (n, 8) uint64 of `dihedral_hashes` of the new ones.

        Returns:
            (len(index) + n,) int64 labels, numbered by first appearance.

        Raises:
            ValueError: hashes or variants as in `match`; labels of another number, or negative.
        """
        new_hashes, old = _checked(new_hashes), len(self)
        if np.shape(labels) != (old,) or (old and np.min(labels) < 0):
            raise ValueError(f"expected a label ≥ 0 for each of the {old} hashes in the index, got an array {np.shape(labels)}")
        among_new = group_near(new_hashes, radius=self.radius, variants=variants, threads=self._threads)
        parent = np.concatenate([_parents(np.asarray(labels, np.int64)), old + _parents(among_new)]).astype(np.int32)
        queries, rows = _queries(new_hashes, variants)
        for run, offset in zip(self._runs, self._offsets(), strict=True):
            run.match(queries, rows + old, self._threads, parent=parent, offset=offset)
        return number_trees(parent)

    def add(self, new_hashes: np.ndarray) -> None:
        """Append hashes; their positions follow those in the index.

        Raises:
            ValueError: not (n,) uint64.
        """
        runs = [*self._runs, _Segment.build(_checked(new_hashes), self.radius, self._threads)]
        while len(runs) > 1 and 2 * len(runs[-1].hashes) > len(runs[-2].hashes):
            both = np.concatenate([run.hashes for run in runs[-2:]])
            runs[-2:] = [_Segment.build(both, self.radius, self._threads)]
        self._runs = runs

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What to store: "hashes" (n,) uint64, "runs" (k,) int64 their lengths, "radius" () int64. The tables are made again from it."""
        runs = [run.hashes for run in self._runs]
        return {"hashes": np.concatenate(runs), "runs": np.array([len(run) for run in runs]), "radius": np.array(self.radius)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], *, threads: int | None = None) -> "HammingIndex":
        """The index that `to_arrays` stored.

        Raises:
            ValueError: the lengths of the runs do not add up to the number of hashes, or as the constructor.
        """
        hashes, lengths = _checked(arrays["hashes"]), np.asarray(arrays["runs"], np.int64)
        if not len(lengths) or lengths.min() < 0 or lengths.sum() != len(hashes):
            raise ValueError(
                f"the index is damaged: runs of {lengths.sum()} hashes, and {len(hashes)} hashes; build it again from the hashes"
            )
        index = cls(hashes[:0], radius=int(arrays["radius"]), threads=threads)
        parts = np.split(hashes, lengths.cumsum()[:-1])
        index._runs = [_Segment.build(part, index.radius, threads) for part in parts]
        return index

    def _offsets(self) -> np.ndarray:
        return np.cumsum([0, *(len(run.hashes) for run in self._runs[:-1])])


def _compare_all(hashes: np.ndarray, queries: np.ndarray, rows: np.ndarray, radius: int) -> np.ndarray:
    """`near_pairs` without kernels."""
    _check_radius(radius)
    near = np.bitwise_count(queries[:, None] ^ hashes[None, :]) <= radius
    query, earlier = np.nonzero(near & (np.arange(len(hashes)) < rows[:, None]))
    return np.unique(np.stack([earlier, rows[query]], axis=1).astype(np.int64), axis=0)


def _check_radius(radius: int) -> None:
    if not 0 <= radius <= BITS:
        raise ValueError(f"expected a radius in [0, {BITS}] bits, got {radius}")


def _checked(hashes: np.ndarray) -> np.ndarray:
    hashes = np.asarray(hashes)
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise ValueError(f"expected hashes (n,) uint64, got {hashes.shape} {hashes.dtype}; leave out pictures without a hash")
    return np.ascontiguousarray(hashes)


def _queries(hashes: np.ndarray, variants: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """What is looked up, and for which row: each row's hash, or each of its distinct variants."""
    rows = np.arange(len(hashes))
    if variants is None:
        return hashes, rows
    variants = np.asarray(variants)
    if variants.shape != (len(hashes), 8) or variants.dtype != np.uint64 or (variants[:, 0] != hashes).any():
        raise ValueError(f"expected variants ({len(hashes)}, 8) uint64 whose first column is the hashes, got {variants.shape}")
    return variants.ravel(), rows.repeat(8)


# -- multi-index hashing


@dataclass(frozen=True)
class _Part:
    """Bits of a hash that make a key, and in how many of them the keys of near hashes may differ."""

    shift: int
    width: int
    radius: int

    @property
    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """All differences of at most `radius` bits by their highest bit, and where those of bit t - 1 begin; the first is no difference."""
        return _masks(self.width, self.radius)


@dataclass(frozen=True)
class _Table:
    """Hashes sorted by their part."""

    hashes: np.ndarray  # (n + _PADDING,) uint64
    rows: np.ndarray  # (n,) int32
    start: np.ndarray  # (2^width + 1,) int32


@dataclass(frozen=True)
class _Segment:
    """Hashes with a table for each part."""

    hashes: np.ndarray  # (n,) uint64 as they came
    deal: np.ndarray  # (8, 256) uint64: what each byte becomes when bits are dealt to the parts
    parts: tuple[_Part, ...]
    tables: tuple[_Table, ...]
    radius: int

    @classmethod
    def build(cls, hashes: np.ndarray, radius: int, threads: int | None, rows: np.ndarray | None = None) -> "_Segment":
        parts = _plan(len(hashes), radius)
        deal = _deal_bits(hashes, parts)
        dealt, rows = _apply(deal, hashes), np.arange(len(hashes)) if rows is None else rows
        tables = _in_threads(lambda i, _: _sorted_by(parts[i], dealt, rows), len(parts), threads)
        return cls(hashes, deal, parts, tuple(tables), radius)

    @property
    def nbytes(self) -> int:
        arrays = [self.hashes, self.deal, *(array for table in self.tables for array in (table.hashes, table.rows, table.start))]
        return sum(array.nbytes for array in arrays)

    def match(
        self,
        queries: np.ndarray,
        rows: np.ndarray,
        threads: int | None,
        *,
        earlier: bool = False,
        parent: np.ndarray | None = None,
        offset: int = 0,
    ) -> np.ndarray:
        """(m, 2) int64 rows of queries and of near hashes, only of smaller rows if `earlier`; or none, but united in `parent`."""
        dealt = _apply(self.deal, queries)
        before = np.array([(part.shift, part.width, part.radius) for part in self.parts], np.int64)
        found = [np.empty((0, 2), np.int64)]
        for i, (part, table) in enumerate(zip(self.parts, self.tables, strict=True)):
            asked = _sorted_by(part, dealt, rows)

            def work(
                worker: int, workers: int, i: int = i, part: _Part = part, table: _Table = table, asked: _Table = asked
            ) -> tuple[np.ndarray, np.ndarray]:
                forest = np.empty(0, np.int32) if parent is None else parent if workers == 1 else parent.copy()
                cut = np.linspace(0, len(queries), workers + 1).astype(np.int64)[worker : worker + 2]
                ask = asked.hashes[cut[0] : cut[1]], asked.rows[cut[0] : cut[1]]
                have = table.hashes, table.rows, table.start
                return _match(*ask, *have, part.masks[0], before[: i + 1], self.radius, earlier, forest, offset), forest

            for pairs, forest in _in_threads(work, None if len(queries) > (_FEW if parent is None else _MANY) else 1, threads):
                found.append(pairs)
                if parent is not None and forest is not parent:
                    _unite_trees(parent, forest, np.arange(len(parent)))
        return np.concatenate(found)


def _components(hashes: np.ndarray, radius: int, threads: int | None) -> np.ndarray:
    """(n,) int32 trees of the near ones among distinct hashes; one part's table at a time."""
    parts = _plan(len(hashes), radius)
    dealt, rows = _apply(_deal_bits(hashes, parts), hashes), np.arange(len(hashes))
    workers = _workers(threads) if len(hashes) > _FEW else 1
    forests = [np.arange(len(hashes), dtype=np.int32) for _ in range(workers)]
    for part in parts:
        table = _sorted_by(part, dealt, rows)

        def work(worker: int, workers: int, part: _Part = part, table: _Table = table) -> None:
            _self_join(table.hashes, table.rows, table.start, *part.masks, radius, forests[worker], worker, workers)

        _in_threads(work, workers, threads)
    for forest in forests[1:]:
        _unite_trees(forests[0], forest, rows)
    return forests[0]


def _workers(threads: int | None) -> int:
    if threads is not None:
        return max(1, threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_threads(work: Callable[[int, int], Any], jobs: int | None, threads: int | None) -> list[Any]:
    """work(i, jobs) for each job. Plain threads and kernels without the GIL: numba's own pool dies when two threads or a fork use it."""
    workers = _workers(threads)
    jobs = workers if jobs is None else jobs
    if min(workers, jobs) == 1:
        return [work(i, jobs) for i in range(jobs)]
    with ThreadPoolExecutor(min(workers, jobs)) as pool:
        return list(pool.map(work, range(jobs), [jobs] * jobs))


@lru_cache(maxsize=256)
def _plan_for(log2_n: int, radius: int) -> tuple[_Part, ...]:
    """The parts with the least work for 2^log2_n random hashes, in about nanoseconds: visits to buckets, comparisons, sorting."""
    n = 2.0**log2_n

    def cost(width: int, part_radius: int) -> float:
        near = sum(comb(width, bits) for bits in range(min(width, part_radius) + 1))
        return near * (_VISIT_NS * min(n, 2.0**width) + _CHECK_NS * n * n / 2**width) + 2 * 2**width + _SORT_NS * n

    best: tuple[float, list[tuple[int, int]]] = (np.inf, [])
    for m in range(1, min(radius, 5) + 2):
        low, wider = divmod(radius - m + 1, m)
        for wide, narrow in product(range(_WIDEST + 1) if wider else (0,), range(_WIDEST + 1)):
            if wider * wide + (m - wider) * narrow <= BITS:
                total = (wider * cost(wide, low + 1) if wider else 0) + (m - wider) * cost(narrow, low)
                best = min(best, (total, [(wide, low + 1)] * wider + [(narrow, low)] * (m - wider)))
    shifts = np.cumsum([0, *(width for width, _ in best[1])])
    return tuple(_Part(int(shift), width, part_radius) for shift, (width, part_radius) in zip(shifts, best[1], strict=False))


def _plan(n: int, radius: int) -> tuple[_Part, ...]:
    _check_radius(radius)
    if n >= 2**31:
        raise ValueError(f"{n} hashes are more than one index holds (2^31)")
    return _plan_for(round(np.log2(max(n, 1))), radius)


@lru_cache(maxsize=64)
def _masks(width: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    every = [[0], *([] for _ in range(width))]  # by the highest bit
    level = [(0, -1)]
    for _ in range(min(radius, width)):
        level = [(mask | 1 << bit, bit) for mask, last in level for bit in range(last + 1, width)]
        for mask, bit in level:
            every[bit + 1].append(mask)
    first = np.cumsum([0, *map(len, every)])
    return np.array([mask for masks in every for mask in masks], np.int64), first.astype(np.int64)


def _deal_bits(hashes: np.ndarray, parts: Iterable[_Part]) -> np.ndarray:
    """Which bit goes where: those that vary most first, each to the part that lacks most; what hardly varies is in no part."""
    sample = np.ascontiguousarray(hashes[:: max(1, len(hashes) // 4096)])
    if not len(sample):
        sample = np.zeros(1, np.uint64)
    set_share = np.unpackbits(sample[:, None].view(np.uint8), axis=1, bitorder="little").reshape(len(sample), -1).mean(0)
    lacking = {part.shift + i: (i + 1) / part.width for part in parts for i in range(part.width)}
    places = sorted(lacking, key=lambda place: (lacking[place], place))
    places += sorted(set(range(BITS)) - set(places))
    target = np.empty(BITS, np.uint64)
    target[np.argsort(np.abs(set_share - 0.5), kind="stable")] = places
    byte = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.uint64)  # (256, 8)
    return np.stack([(byte << target[8 * i : 8 * i + 8]).sum(1, dtype=np.uint64) for i in range(8)])


def _sorted_by(part: _Part, hashes: np.ndarray, rows: np.ndarray) -> _Table:
    return _Table(*_sort_by_key(hashes, rows, part.shift, part.width))


def _parents(labels: np.ndarray) -> np.ndarray:
    """(n,) int64 the first sample of each one's label."""
    first = np.full(labels.max(initial=-1) + 1, len(labels))
    first[labels[::-1]] = np.arange(len(labels))[::-1]  # the last one written stays
    return first[labels]


# -- kernels


@intrinsic
def _generate_count(typing_context: Any, value: Any) -> Any:
    """The processor's own instruction: numba knows no numpy.bitwise_count."""
    return types.int64(types.uint64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


@intrinsic
def _generate_prefetch(typing_context: Any, hashes: Any, place: Any) -> Any:
    """Ask for a line of memory before it is needed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
        line = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [line.type, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [line, number(0), number(3), number(1)])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(hashes, types.int64), generate


_count_bits: Any = _generate_count  # their first argument is numba's, which no type checker knows
_prefetch: Any = _generate_prefetch


@compiled
def _apply(deal: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    dealt = np.zeros(len(hashes), np.uint64)
    for i in range(len(hashes)):
        value = hashes[i]
        for byte in range(8):
            dealt[i] |= deal[byte, (value >> np.uint64(8 * byte)) & np.uint64(255)]
    return dealt


@compiled
def _sort_by_key(hashes: np.ndarray, rows: np.ndarray, shift: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counting sort, stable."""
    low, mask = np.uint64(shift), np.uint64((1 << width) - 1)
    start = np.zeros((1 << width) + 1, np.int32)
    for i in range(len(hashes)):
        start[np.int64((hashes[i] >> low) & mask) + 1] += 1
    for key in range(1 << width):
        start[key + 1] += start[key]
    free = start[:-1].copy()
    by_key, row_of = np.zeros(len(hashes) + _PADDING, np.uint64), np.empty(len(hashes), np.int32)
    for i in range(len(hashes)):
        place = np.int64((hashes[i] >> low) & mask)
        by_key[free[place]], row_of[free[place]] = hashes[i], rows[i]
        free[place] += 1
    return by_key, row_of, start


@compiled
def _first_of_each(hashes: np.ndarray) -> np.ndarray:
    """(n,) int64 the first place of the same hash; an open-addressed table, Fibonacci hashing."""
    bits = 4
    while (1 << bits) < 2 * len(hashes):
        bits += 1
    table = np.full(1 << bits, -1, np.int32)
    first = np.empty(len(hashes), np.int64)
    for i in range(len(hashes)):
        slot = np.int64((hashes[i] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))
        while table[slot] >= 0 and hashes[table[slot]] != hashes[i]:
            slot = (slot + 1) & ((1 << bits) - 1)
        if table[slot] < 0:
            table[slot] = i
        first[i] = table[slot]
    return first


@compiled
def _unite(parent: np.ndarray, i: int, j: int) -> None:
    """The smaller root becomes the root of both, so that a root is the first of its component."""
    i, j = find_root(parent, i), find_root(parent, j)
    if i < j:
        parent[j] = i
    else:
        parent[i] = j


@compiled
def unite_all(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Unite the trees of each pair in a forest `parent` (n,) int32, in place."""
    for i in range(len(left)):
        _unite(parent, left[i], right[i])


@compiled
def _unite_trees(parent: np.ndarray, tree: np.ndarray, name: np.ndarray) -> None:
    """Take over what is joined in another forest, whose i is called name[i] here."""
    for i in range(len(tree)):
        if tree[i] != i:
            _unite(parent, name[i], name[tree[i]])


@compiled
def number_trees(parent: np.ndarray) -> np.ndarray:
    """(n,) int64 labels by first appearance; roots come first of their component."""
    labels = np.empty(len(parent), np.int64)
    count = 0
    for i in range(len(parent)):
        root = find_root(parent, i)
        if root == i:
            labels[i] = count
            count += 1
        else:
            labels[i] = labels[root]
    return labels


@compiled
def _unite_crowds(hashes: np.ndarray, rows: np.ndarray, parent: np.ndarray, a0: int, a1: int, b0: int, b1: int, radius: int) -> None:
    """Join the near ones of two large buckets, or of one with itself; who is joined with all of the other bucket is not compared."""
    roots = np.empty(b1 - b0, np.int64)
    stale, uniform = True, False
    for a in range(a0, a1):
        if stale:
            uniform = True
            for b in range(b0, b1):
                roots[b - b0] = find_root(parent, rows[b])
                uniform &= roots[b - b0] == roots[0]
            stale = False
        root = find_root(parent, rows[a])
        if uniform and root == roots[0]:
            continue
        for b in range(a + 1 if a0 == b0 else b0, b1):
            if _count_bits(hashes[a] ^ hashes[b]) <= radius and roots[b - b0] != root:
                _unite(parent, rows[a], rows[b])
                root = find_root(parent, rows[a])
                stale = True


@compiled
def _any_near(value: np.uint64, hashes: np.ndarray, count: int, radius: int) -> bool:
    """Whether one of the first hashes is near; counted without a branch, because such a loop runs on vectors."""
    near = 0
    for k in range(count):
        near += _count_bits(value ^ hashes[k]) <= radius
    return near > 0


@compiled
def _unite_buckets(
    hashes: np.ndarray,
    rows: np.ndarray,
    parent: np.ndarray,
    a0: int,
    a1: int,
    flat: np.ndarray,
    count: int,
    buckets: np.ndarray,
    radius: int,
) -> None:
    """Join the hashes a0…a1 with the near ones of other buckets (k, 2), which lie side by side in the flat list."""
    for a in range(a0, a1):
        if _any_near(hashes[a], flat, count, radius):
            for i in range(len(buckets)):
                for b in range(buckets[i, 0], buckets[i, 1]):
                    if _count_bits(hashes[a] ^ hashes[b]) <= radius:
                        _unite(parent, rows[a], rows[b])


@compiled
def _lay(hashes: np.ndarray, b0: int, b1: int, flat: np.ndarray, count: int) -> int:
    """Lay a bucket into the flat list. Most hold a few hashes, and reading always `_PADDING` of them mispredicts no branch."""
    for k in range(_PADDING):
        flat[count + k] = hashes[b0 + k]
    for k in range(_PADDING, b1 - b0):
        flat[count + k] = hashes[b0 + k]
    return count + b1 - b0


@compiled
def _ask_for(hashes: np.ndarray, start: np.ndarray, masks: np.ndarray, key: int) -> None:
    """Have the next key's buckets on the way while those of this one are compared: they lie too scattered for the processor's guess."""
    for m in range(len(masks)):
        place = np.int64(start[key ^ masks[m]])
        _prefetch(hashes, place)
        _prefetch(hashes, place + _LINE)


@compiled
def _self_join(
    hashes: np.ndarray,
    rows: np.ndarray,
    start: np.ndarray,
    masks: np.ndarray,
    first: np.ndarray,
    radius: int,
    parent: np.ndarray,
    worker: int,
    workers: int,
) -> None:
    """Join the near ones of a table: each bucket with itself and with those whose key differs by a mask; each two buckets meet once."""
    flat, buckets = np.empty(_FLAT + _HEAVY + _PADDING, np.uint64), np.empty((_FLAT, 2), np.int32)
    for block in range(worker, (len(start) + 62) // 64, workers):  # blocks of 64: threads share the load, neighbours the cache
        for key in range(64 * block, min(64 * block + 64, len(start) - 1)):
            a0, a1 = start[key], start[key + 1]
            if a0 == a1:
                continue
            for bit in range(len(first) - 2):
                if not ((key + 1) >> bit) & 1 and key + 1 < len(start) - 1:
                    _ask_for(hashes, start, masks[first[bit + 1] : first[bit + 2]], key + 1)
            _unite_bucket(hashes, rows, parent, a0, a1, radius)
            count = met = 0
            for bit in range(len(first) - 2):
                if (key >> bit) & 1:  # the other key is the smaller one: met from there
                    continue
                for m in range(first[bit + 1], first[bit + 2]):
                    b0, b1 = start[key ^ masks[m]], start[(key ^ masks[m]) + 1]
                    if (a1 - a0) * (b1 - b0) >= _HEAVY:
                        _unite_crowds(hashes, rows, parent, a0, a1, b0, b1, radius)
                        continue
                    count, buckets[met, 0], buckets[met, 1] = _lay(hashes, b0, b1, flat, count), b0, b1
                    met += 1
                    if count > _FLAT or met == _FLAT:
                        _unite_buckets(hashes, rows, parent, a0, a1, flat, count, buckets[:met], radius)
                        count = met = 0
            _unite_buckets(hashes, rows, parent, a0, a1, flat, count, buckets[:met], radius)


@compiled
def _unite_bucket(hashes: np.ndarray, rows: np.ndarray, parent: np.ndarray, a0: int, a1: int, radius: int) -> None:
    if (a1 - a0) ** 2 >= _HEAVY:
        _unite_crowds(hashes, rows, parent, a0, a1, a0, a1, radius)
        return
    for a in range(a0, a1):
        for b in range(a + 1, a1):
            if _count_bits(hashes[a] ^ hashes[b]) <= radius:
                _unite(parent, rows[a], rows[b])


@compiled
def _met_before(difference: np.uint64, parts: np.ndarray) -> bool:
    """Whether an earlier part than the last one finds this pair too."""
    for i in range(len(parts) - 1):
        key = (difference >> np.uint64(parts[i, 0])) & np.uint64((1 << parts[i, 1]) - 1)
        if _count_bits(key) <= parts[i, 2]:
            return True
    return False


@compiled
def _match(
    queries: np.ndarray,
    query_rows: np.ndarray,
    hashes: np.ndarray,
    rows: np.ndarray,
    start: np.ndarray,
    masks: np.ndarray,
    parts: np.ndarray,
    radius: int,
    earlier: bool,
    parent: np.ndarray,
    offset: int,
) -> np.ndarray:
    """(m, 2) rows of near queries and hashes, each pair by the first part that finds it; or none, but united where there is a parent."""
    low, mask = np.uint64(parts[-1, 0]), np.uint64((1 << parts[-1, 1]) - 1)
    flat, buckets = np.empty(_FLAT + _HEAVY + _PADDING, np.uint64), np.empty((_FLAT, 2), np.int32)
    found, total = np.empty((1024, 2), np.int64), 0
    for i in range(len(queries)):
        value, row = queries[i], query_rows[i]
        key = np.int64((value >> low) & mask)
        if i + 1 < len(queries):
            _ask_for(hashes, start, masks, np.int64((queries[i + 1] >> low) & mask))
        count = met = 0
        for m in range(len(masks)):
            b0, b1 = start[key ^ masks[m]], start[(key ^ masks[m]) + 1]
            while b1 - b0 > _HEAVY:
                if _any_near(value, hashes[b0:], _HEAVY, radius):
                    one = np.array([[b0, b0 + _HEAVY]], np.int32)
                    found, total = _take(value, row, hashes, rows, one, parts, radius, earlier, parent, offset, found, total)
                b0 += _HEAVY
            count, buckets[met, 0], buckets[met, 1] = _lay(hashes, b0, b1, flat, count), b0, b1
            met += 1
            if count > _FLAT or met == _FLAT:
                if _any_near(value, flat, count, radius):
                    found, total = _take(value, row, hashes, rows, buckets[:met], parts, radius, earlier, parent, offset, found, total)
                count = met = 0
        if _any_near(value, flat, count, radius):
            found, total = _take(value, row, hashes, rows, buckets[:met], parts, radius, earlier, parent, offset, found, total)
    return found[:total]


@compiled
def _take(
    value: np.uint64,
    row: int,
    hashes: np.ndarray,
    rows: np.ndarray,
    buckets: np.ndarray,
    parts: np.ndarray,
    radius: int,
    earlier: bool,
    parent: np.ndarray,
    offset: int,
    found: np.ndarray,
    total: int,
) -> tuple[np.ndarray, int]:
    """Keep the near ones of some buckets (k, 2): united where there is a parent, else listed; the list grows as needed."""
    for i in range(len(buckets)):
        for b in range(buckets[i, 0], buckets[i, 1]):
            difference = value ^ hashes[b]
            if _count_bits(difference) > radius or (earlier and rows[b] >= row):
                continue
            if len(parent):
                _unite(parent, row, rows[b] + offset)
            elif not _met_before(difference, parts):
                if total == len(found):
                    longer = np.empty((2 * total, 2), np.int64)
                    longer[:total] = found
                    found = longer
                found[total, 0], found[total, 1] = row, rows[b]
                total += 1
    return found, total
