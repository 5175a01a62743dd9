"""Regions of a map from a threshold on, as polygons with holes and their measures; the map comes in bands and is never in memory whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from methods.curation.forests import find_root
from methods.curation.hashing import compiled

_CLEAN_FROM = 1 << 16  # corners of components that go on, from which on they are looked through for finished ones


@dataclass(frozen=True, eq=False)
class Region:
    """One connected component of the pixels that reach the threshold; pixels that touch at a corner only are not connected.

    Attributes:
        rings: the outline first, then the holes; each (n, 2) int32, x and y of corners of pixels, the first not repeated at the end. With y
            upwards the outline runs counterclockwise and holes clockwise (RFC 7946's right-hand rule). None meets itself; two of a
            region may touch in single corners. Edges are as long as they can be.
        area_px: pixels of the component; those of holes are not among them.
        mean, highest: of its scores.
    """

    rings: tuple[np.ndarray, ...]
    area_px: int
    mean: float
    highest: float


class _Corners(NamedTuple):
    """Where outlines turn: x, y, whether the horizontal edge leads east and the vertical one south, and of which component."""

    component: np.ndarray
    x: np.ndarray
    y: np.ndarray
    east: np.ndarray
    south: np.ndarray

    def of(self, chosen: np.ndarray) -> "_Corners":
        return _Corners(*(column[chosen] for column in self))


class RegionTracer:
    """Finds regions while the rows of a map go by.

    Components by runs as Rosenfeld and Pfaltz (J ACM 1966): runs of consecutive rows that touch are joined in a forest. Of each
    component the corners of its outline are kept, and when it has ended they are joined to rings: in a row of the grid, and in a column,
    the corners of one component in their order are the ends of its edges, two by two. Where two of its pixels touch at a corner only,
    the outline would meet itself; the two corners there are exchanged so that it parts into two rings that touch.

    What is in memory besides the regions is a row of labels, and the corners of components that reach the last row.
    """

    def __init__(self, *, width_px: int, threshold: float, least_px: float = 0) -> None:
        """Begin above the first row.

        Args:
            width_px: of the map.
            threshold: from which on a score belongs to a region.
            least_px: regions of fewer pixels are left out.
        """
        nearest = np.float32(threshold)
        self._threshold = nearest if float(nearest) >= threshold else np.nextafter(nearest, np.float32(np.inf))
        self._least_px = least_px
        self._rows_seen = 0
        self._frontier = np.full(width_px, -1, np.int64)  # of the last row, the component of each pixel, or −1
        self._parent, self._area = np.empty(0, np.int64), np.empty(0, np.int64)  # of components that reached past a band
        self._total, self._highest = np.empty(0, np.float64), np.empty(0, np.float32)
        self._waiting: list[_Corners] = []
        self._clean_at = _CLEAN_FROM
        self._regions: list[Region] = []

    def add(self, rows: np.ndarray) -> None:
        """The next rows, (n, width_px) float32; NaN belongs to no region."""
        reached = rows >= self._threshold
        if not reached.any() and (self._frontier < 0).all():
            self._rows_seen += len(rows)
            return
        old, before = np.unique(self._frontier, return_inverse=True)  # components that come from above, by their place in `old`
        old, before = (old[1:], before - 1) if old[0] < 0 else (old, before)
        count, corners_count = _count(reached, before >= 0)
        parent, area, total, highest, last, found = _trace(rows, reached, before, self._rows_seen, len(old), count, corners_count)
        corners = _Corners(found[0], found[1], found[2], found[3].astype(bool), found[4].astype(bool))
        self._rows_seen += len(rows)
        self._join_known(old, parent[: len(old)])
        known = np.full(len(parent), -1, np.int64)  # by root of this band: the component outside of it
        known[parent[: len(old)]] = self._roots(old)
        begun = np.unique(parent[last[last >= 0]])
        begun = begun[known[begun] < 0]
        known[begun] = self._begin(len(begun))
        self._measure(known[parent], area, total, highest)
        of_band = corners._replace(component=parent[corners.component])
        outside = known[of_band.component]
        sizes = np.bincount(parent, weights=area, minlength=len(parent))
        ended = of_band.of((outside < 0) & (sizes[of_band.component] >= self._least_px))
        self._finish(ended, *_sum_by_root(parent, area, total, highest))
        self._waiting.append(of_band._replace(component=outside).of(outside >= 0))
        self._frontier = np.where(last >= 0, known[parent[last]], -1)
        if sum(len(corners.x) for corners in self._waiting) > self._clean_at:
            self._clean()

    def finish(self) -> list[Region]:
        """All regions, after the last row: by the row and column of their first pixel."""
        self.add(np.full((1, len(self._frontier)), np.nan, np.float32))
        self._clean()
        return sorted(self._regions, key=lambda region: (region.rings[0][0, 1], region.rings[0][0, 0]))

    def _join_known(self, old: np.ndarray, roots: np.ndarray) -> None:
        """Components from above that this band has joined."""
        first: dict[int, int] = {}
        for component, root in zip(self._roots(old).tolist(), roots.tolist(), strict=True):
            kept = first.setdefault(root, component)
            if kept != component:
                self._parent[component] = kept
                self._area[kept] += self._area[component]
                self._total[kept] += self._total[component]
                self._highest[kept] = max(self._highest[kept], self._highest[component])

    def _roots(self, components: np.ndarray) -> np.ndarray:
        roots = self._parent[components]
        while (roots != self._parent[roots]).any():
            roots = self._parent[roots]
        return roots

    def _begin(self, count: int) -> np.ndarray:
        """New components that go on below the band."""
        numbers = np.arange(len(self._parent), len(self._parent) + count)
        self._parent = np.concatenate([self._parent, numbers])
        self._area, self._total = (np.concatenate([array, np.zeros(count, array.dtype)]) for array in (self._area, self._total))
        self._highest = np.concatenate([self._highest, np.full(count, -np.inf, np.float32)])
        return numbers

    def _measure(self, components: np.ndarray, area: np.ndarray, total: np.ndarray, highest: np.ndarray) -> None:
        ours = components >= 0
        np.add.at(self._area, components[ours], area[ours])
        np.add.at(self._total, components[ours], total[ours])
        np.maximum.at(self._highest, components[ours], highest[ours])

    def _clean(self) -> None:
        """Make regions of the components that have ended, and forget those that are too small."""
        if not self._waiting:
            return
        columns = zip(*self._waiting, strict=True)
        corners = _Corners(*(np.concatenate(column) for column in columns))
        corners = corners._replace(component=self._roots(corners.component))
        goes_on = np.zeros(len(self._parent), bool)
        goes_on[self._roots(self._frontier[self._frontier >= 0])] = True
        large = self._area[corners.component] >= self._least_px
        self._finish(corners.of(~goes_on[corners.component] & large), self._area, self._total, self._highest)
        self._waiting = [corners.of(goes_on[corners.component])]
        self._clean_at = max(_CLEAN_FROM, 2 * len(self._waiting[0].x))

    def _finish(self, corners: _Corners, area: np.ndarray, total: np.ndarray, highest: np.ndarray) -> None:
        for component, rings in _join_rings(corners):
            size = int(area[component])
            self._regions.append(Region(rings, size, float(total[component] / size), float(highest[component])))


def _sum_by_root(parent: np.ndarray, area: np.ndarray, total: np.ndarray, highest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    most = np.full(len(parent), -np.inf, np.float32)
    np.maximum.at(most, parent, highest)
    return (
        np.bincount(parent, weights=area, minlength=len(parent)),
        np.bincount(parent, weights=total, minlength=len(parent)),
        most,
    )


def _join_rings(corners: _Corners) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Each component and its rings, the outline first."""
    corners = corners.of(np.lexsort((corners.east, corners.x, corners.y, corners.component)))
    component, x, y = corners.component, corners.x, corners.y
    twice = np.flatnonzero((component[1:] == component[:-1]) & (y[1:] == y[:-1]) & (x[1:] == x[:-1]))
    south = corners.south.copy()
    south[twice], south[twice + 1] = corners.south[twice + 1], corners.south[twice]
    by_column = np.lexsort((south, y, x, component))
    beside = np.empty(len(x), np.int64)
    beside[by_column[::2]], beside[by_column[1::2]] = by_column[1::2], by_column[::2]
    order, starts = _follow(beside)
    points = np.stack([x, y], 1).astype(np.int32)[order]
    rings: list[np.ndarray] = []
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        ring = points[start:stop]
        rings.append(ring[::-1] if rings else ring)  # all were walked as an outline is
        following = component[order[stop]] if stop < len(order) else -1
        if following != component[order[start]]:
            yield int(component[order[start]]), tuple(rings)
            rings = []


@compiled
def _follow(beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rings from corners that are sorted by rows: along the row to the next or the one before, along the column to `beside`, and so on."""
    order, starts, seen = np.empty(len(beside), np.int64), [0], np.zeros(len(beside), np.bool_)
    placed = 0
    for first in range(0, len(beside), 2):
        corner = first
        while not seen[corner]:
            partner = corner ^ 1
            order[placed], order[placed + 1] = corner, partner
            placed += 2
            seen[corner] = seen[partner] = True
            corner = beside[partner]
        if placed > starts[-1]:
            starts.append(placed)
    return order, np.array(starts)


@compiled
def _count(reached: np.ndarray, above: np.ndarray) -> tuple[int, int]:
    """Runs in the rows, and corners on their upper rims."""
    runs = corners = 0
    for y in range(reached.shape[0]):
        upper, lower = above if y == 0 else reached[y - 1], reached[y]
        north_west = south_west = False
        for x in range(len(lower) + 1):
            north_east, south_east = (upper[x], lower[x]) if x < len(lower) else (False, False)
            if north_west != north_east or south_west != south_east:
                runs += south_east and not south_west
                odd = (int(north_west) + int(north_east) + int(south_west) + int(south_east)) % 2
                corners += 1 if odd else 2 * (north_west == south_east)
                north_west, south_west = north_east, south_east
    return runs, corners


@compiled
def _trace(
    rows: np.ndarray, reached: np.ndarray, before: np.ndarray, first_row: int, known: int, runs: int, corners: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of components, those from above first: root, area, sum and highest score; the last row's; and (5, corners) as in `_Corners`."""
    height, width = rows.shape
    parent = np.arange(known + runs)
    area, total = np.zeros(known + runs, np.int64), np.zeros(known + runs, np.float64)
    highest = np.full(known + runs, -np.inf, np.float32)
    found, placed, label = np.empty((5, corners), np.int64), 0, known - 1
    upper, lower = before.astype(np.int64), np.empty(width, np.int64)
    for y in range(height):
        for x in range(width):
            if not reached[y, x]:
                lower[x] = -1
                continue
            if x == 0 or lower[x - 1] < 0:
                label += 1
            lower[x] = label
            area[label] += 1
            total[label] += rows[y, x]
            highest[label] = max(highest[label], rows[y, x])
            if upper[x] >= 0:
                one, other = find_root(parent, label), find_root(parent, upper[x])
                parent[max(one, other)] = min(one, other)
        north_west = south_west = -1
        for x in range(width + 1):
            north_east, south_east = (upper[x], lower[x]) if x < width else (-1, -1)
            if (north_west >= 0) == (north_east >= 0) and (south_west >= 0) == (south_east >= 0):
                continue
            inside = int(north_west >= 0) + int(north_east >= 0) + int(south_west >= 0) + int(south_east >= 0)
            diagonal = inside == 2 and (north_west >= 0) == (south_east >= 0)
            if inside % 2 or diagonal:
                odd_one_out = inside == 1  # of three, the one that is not there
                for east, south, here in ((0, 0, north_west), (1, 0, north_east), (0, 1, south_west), (1, 1, south_east)):
                    if (here >= 0) == (odd_one_out or diagonal):
                        component = here if here >= 0 else max(north_west, north_east, south_west, south_east)
                        found[:, placed] = component, x, first_row + y, east, south
                        placed += 1
            north_west, south_west = north_east, south_east
        upper, lower = lower, upper
    for component in range(known + runs):
        parent[component] = find_root(parent, component)
    return parent, area, total, highest, upper, found
