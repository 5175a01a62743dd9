"""Tables of hashes by parts of them, in which near ones are found: multi-index hashing (Norouzi, Punjani and Fleet 2014)."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import comb
from typing import Any

import numpy as np

from methods.curation.forests import unite_trees
from methods.curation.hamming_kernels import deal_bits, match_buckets, self_join, sort_by_key

BITS = 64
_WIDEST = 22  # bits of a key: a table of starts of 16 MiB
_FEW, _MANY = 1000, 100_000  # hashes that are worth a second thread; where it needs a copy of the forest of a whole archive
_VISIT_NS, _CHECK_NS, _SORT_NS = 5.0, 0.17, 15.0  # measured; half of it, because each two buckets meet once


def check_radius(radius: int) -> None:
    """Raises ValueError outside [0, 64]."""
    if not 0 <= radius <= BITS:
        raise ValueError(f"expected a radius in [0, {BITS}] bits, got {radius}")


@dataclass(frozen=True)
class Part:
    """Bits of a hash that make a key, and in how many of them the keys of near hashes may differ."""

    shift: int
    width: int
    radius: int

    @property
    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """All differences of at most `radius` bits by their highest bit, and where those of bit t - 1 begin; the first is no difference."""
        return _masks(self.width, self.radius)


@dataclass(frozen=True)
class Table:
    """Hashes sorted by their part."""

    hashes: np.ndarray  # (n + PADDING,) uint64
    rows: np.ndarray  # (n,) int32
    start: np.ndarray  # (2^width + 1,) int32


@dataclass(frozen=True)
class Segment:
    """Hashes with a table for each part."""

    hashes: np.ndarray  # (n,) uint64 as they came
    deal: np.ndarray  # (8, 256) uint64: what each byte becomes when bits are dealt to the parts
    parts: tuple[Part, ...]
    tables: tuple[Table, ...]
    radius: int

    @classmethod
    def build(cls, hashes: np.ndarray, radius: int, threads: int | None, rows: np.ndarray | None = None) -> "Segment":
        """Of (n,) uint64; `rows` (n,) are what they are called, their places when not given."""
        parts = _plan(len(hashes), radius)
        deal = _choose_deal(hashes, parts)
        dealt, rows = deal_bits(deal, hashes), np.arange(len(hashes)) if rows is None else rows
        tables = _in_threads(lambda i, _: _sorted_by(parts[i], dealt, rows), len(parts), threads)
        return cls(hashes, deal, parts, tuple(tables), radius)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
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
        dealt = deal_bits(self.deal, queries)
        before = np.array([(part.shift, part.width, part.radius) for part in self.parts], np.int64)
        found = [np.empty((0, 2), np.int64)]
        for i, (part, table) in enumerate(zip(self.parts, self.tables, strict=True)):
            asked = _sorted_by(part, dealt, rows)

            def work(
                worker: int, workers: int, i: int = i, part: Part = part, table: Table = table, asked: Table = asked
            ) -> tuple[np.ndarray, np.ndarray]:
                forest = np.empty(0, np.int32) if parent is None else parent if workers == 1 else parent.copy()
                cut = np.linspace(0, len(queries), workers + 1).astype(np.int64)[worker : worker + 2]
                ask = asked.hashes[cut[0] : cut[1]], asked.rows[cut[0] : cut[1]]
                have = table.hashes, table.rows, table.start
                return match_buckets(*ask, *have, part.masks[0], before[: i + 1], self.radius, earlier, forest, offset), forest

            for pairs, forest in _in_threads(work, None if len(queries) > (_FEW if parent is None else _MANY) else 1, threads):
                found.append(pairs)
                if parent is not None and forest is not parent:
                    unite_trees(parent, forest, np.arange(len(parent)))
        return np.concatenate(found)


def find_components(hashes: np.ndarray, radius: int, threads: int | None) -> np.ndarray:
    """(n,) int32 trees of the near ones among distinct hashes; one part's table at a time."""
    parts = _plan(len(hashes), radius)
    dealt, rows = deal_bits(_choose_deal(hashes, parts), hashes), np.arange(len(hashes))
    workers = _workers(threads) if len(hashes) > _FEW else 1
    forests = [np.arange(len(hashes), dtype=np.int32) for _ in range(workers)]
    for part in parts:
        table = _sorted_by(part, dealt, rows)

        def work(worker: int, workers: int, part: Part = part, table: Table = table) -> None:
            self_join(table.hashes, table.rows, table.start, *part.masks, radius, forests[worker], worker, workers)

        _in_threads(work, workers, threads)
    for forest in forests[1:]:
        unite_trees(forests[0], forest, rows)
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
def _plan_for(log2_n: int, radius: int) -> tuple[Part, ...]:
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
    return tuple(Part(int(shift), width, part_radius) for shift, (width, part_radius) in zip(shifts, best[1], strict=False))


def _plan(n: int, radius: int) -> tuple[Part, ...]:
    check_radius(radius)
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


def _choose_deal(hashes: np.ndarray, parts: Iterable[Part]) -> np.ndarray:
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


def _sorted_by(part: Part, hashes: np.ndarray, rows: np.ndarray) -> Table:
    return Table(*sort_by_key(hashes, rows, part.shift, part.width))
