"""Exact search of hashes that differ in few bits: all pairs, groups, and an index to which more can be added."""

import numpy as np

from methods.curation.forests import number_trees, unite_trees
from methods.curation.hamming_kernels import first_of_each
from methods.curation.hamming_tables import Segment, check_radius, find_components

RADIUS = 8  # bits of 64: what rescaling and recompression change stays below, what two pictures share by chance far above
_FEWER_THAN_COMPILING = 1024  # hashes that are compared all with all before the compiler, which takes seconds once, would be done


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
    found = Segment.build(hashes, radius, threads).match(queries, rows, threads, earlier=True)
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
    first = first_of_each(hashes)
    kept = np.flatnonzero(first == np.arange(len(hashes)))
    parent = first.astype(np.int32)
    if variants is None:
        unite_trees(parent, find_components(hashes[kept], radius, threads), kept)
    else:
        queries, rows = _queries(hashes, variants)
        segment = Segment.build(hashes[kept], radius, threads, rows=kept)
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
        self._runs: list[Segment] = [Segment.build(_checked(hashes), radius, threads)]

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
        runs = [*self._runs, Segment.build(_checked(new_hashes), self.radius, self._threads)]
        while len(runs) > 1 and 2 * len(runs[-1].hashes) > len(runs[-2].hashes):
            both = np.concatenate([run.hashes for run in runs[-2:]])
            runs[-2:] = [Segment.build(both, self.radius, self._threads)]
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
        index._runs = [Segment.build(part, index.radius, threads) for part in parts]
        return index

    def _offsets(self) -> np.ndarray:
        return np.cumsum([0, *(len(run.hashes) for run in self._runs[:-1])])


def _compare_all(hashes: np.ndarray, queries: np.ndarray, rows: np.ndarray, radius: int) -> np.ndarray:
    """`near_pairs` without kernels."""
    check_radius(radius)
    near = np.bitwise_count(queries[:, None] ^ hashes[None, :]) <= radius
    query, earlier = np.nonzero(near & (np.arange(len(hashes)) < rows[:, None]))
    return np.unique(np.stack([earlier, rows[query]], axis=1).astype(np.int64), axis=0)


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


def _parents(labels: np.ndarray) -> np.ndarray:
    """(n,) int64 the first sample of each one's label."""
    first = np.full(labels.max(initial=-1) + 1, len(labels))
    first[labels[::-1]] = np.arange(len(labels))[::-1]  # the last one written stays
    return first[labels]
