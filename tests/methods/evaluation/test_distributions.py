"""One pass over the scores against scipy on repeated items, quantiles against NumPy's, the stability index against a slow obvious twin."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from methods.evaluation.distributions import bin_items, bin_levels, distribution_functions, ks_distance, stability_index, walk
from methods.evaluation.histograms import SubjectCounts, count_scores
from methods.evaluation.metrics import UndefinedMetricError

LEVELS = np.array([0.1, 0.5, 0.95, 0.99])


class Sample(NamedTuple):
    scores: np.ndarray
    sides: np.ndarray
    subjects: np.ndarray
    weights: np.ndarray  # (R, S)

    @property
    def counts(self) -> SubjectCounts:
        return count_scores(self.scores, self.sides, self.subjects)

    def repeat(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The items of both sides, each as often as its subject counts."""
        times = self.weights[row][np.unique(self.subjects, return_inverse=True)[1]]
        return tuple(np.repeat(self.scores[self.sides == side], times[self.sides == side]) for side in (0, 1))  # type: ignore[return-value]


@st.composite
def samples_with_ties(draw: st.DrawFn) -> Sample:
    item = st.tuples(st.integers(-5, 5), st.integers(0, 1), st.integers(2, 6))
    scores, sides, subjects = map(np.array, zip((0, 0, 0), (1, 1, 1), *draw(st.lists(item, max_size=60)), strict=True))
    size = len(np.unique(subjects))
    weights = draw(st.lists(st.lists(st.integers(0, 3), min_size=size, max_size=size), min_size=1, max_size=20))
    weights = np.array(weights)
    weights[:, :2] = 1  # both sides have an item
    return Sample(scores / 4, sides, subjects, weights)


@settings(deadline=None, max_examples=50)
@given(samples_with_ties())
def test_weights_are_repeated_items_in_scipys_distance_and_numpys_quantiles(sample: Sample) -> None:
    counts = sample.counts
    found = walk(counts, sample.weights, levels=LEVELS)
    for row in range(len(sample.weights)):
        reference, archive = sample.repeat(row)
        assert found.distance[2, row] == pytest.approx(stats.ks_2samp(reference, archive).statistic, abs=1e-12)
        assert found.totals[:, row].tolist() == [len(reference), len(archive)]
        for side, items in enumerate((reference, archive)):
            expected = np.quantile(items, LEVELS, method="inverted_cdf")
            np.testing.assert_array_equal(counts.values[found.reached[side, :, row]], expected)


@settings(deadline=None, max_examples=50)
@given(samples_with_ties(), st.integers(2, 12))
def test_the_stability_index_equals_its_slow_twin(sample: Sample, bins: int) -> None:
    found = stability_index(*bin_items(walk(sample.counts, sample.weights, levels=bin_levels(bins))))
    for row in range(len(sample.weights)):
        assert found[row] == pytest.approx(index_slowly(*sample.repeat(row), bins), abs=1e-12)


def index_slowly(reference: np.ndarray, archive: np.ndarray, bins: int) -> float:
    ordered = sorted(reference.tolist())
    ends = sorted({ordered[-(-j * len(ordered) // bins) - 1] for j in range(1, bins)})
    edges = [-math.inf, *ends, math.inf]
    counted = [tuple(sum(low < item <= high for item in items) for items in (reference, archive)) for low, high in pairwise(edges)]
    counted = [pair for pair in counted if any(pair)]
    total = 0.0
    for in_reference, in_archive in counted:
        r = (in_reference + 0.5) / (len(reference) + 0.5 * len(counted))
        a = (in_archive + 0.5) / (len(archive) + 0.5 * len(counted))
        total += (a - r) * math.log(a / r)
    return total


@settings(deadline=None, max_examples=50)
@given(samples_with_ties(), st.integers(0, 2**32 - 1))
def test_exchanging_a_subject_is_the_same_as_other_labels(sample: Sample, seed: int) -> None:
    names = np.unique(sample.subjects)
    changes = np.random.default_rng(seed).integers(0, 2, (3, len(names)))
    for row in changes:
        sides = np.where(row[np.searchsorted(names, sample.subjects)] == 1, 1 - sample.sides, sample.sides)
        if len(np.unique(sides)) < 2:
            continue
        found = walk(sample.counts, row[None], levels=LEVELS, exchanged=True)
        expected = walk(count_scores(sample.scores, sides, sample.subjects), np.ones((1, len(names))), levels=LEVELS)
        for part, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(part, other, rtol=0, atol=1e-12)


def test_distances_are_taken_from_a_centre() -> None:
    rng = np.random.default_rng(0)
    counts = count_scores(rng.integers(0, 9, 80), np.arange(80) % 2, np.arange(80) // 4)
    centre = distribution_functions(counts)
    weights = rng.integers(0, 3, (40, 20))
    found = walk(counts, weights, levels=LEVELS, centre=centre).distance
    for row in range(len(weights)):
        functions = [np.cumsum(weights[row] @ table.toarray()) for table in (counts.normal, counts.abnormal)]
        first, second = (function / function[-1] - middle for function, middle in zip(functions, centre, strict=True))
        expected = [np.abs(one).max() for one in (first, second, first - second)]
        np.testing.assert_allclose(found[:, row], expected, rtol=0, atol=1e-12)


def test_an_empty_bin_counts_as_half_an_item() -> None:
    """Ten reference items in five bins of two, an archive of four that leaves the lowest three bins empty and has two beyond."""
    counts = count_scores(np.array([*range(10), 7, 9, 11, 12.0]), np.repeat([0, 1], [10, 4]), np.arange(14))
    reference, archive = bin_items(walk(counts, np.ones((1, 14)), levels=bin_levels(5)))
    assert reference.tolist() == [[2] * 5]
    assert archive.tolist() == [[0, 0, 0, 1, 3]]
    shares = np.array([0.5, 0.5, 0.5, 1.5, 3.5]) / 6.5
    assert stability_index(reference, archive)[0] == pytest.approx(((shares - 0.2) * np.log(shares / 0.2)).sum())


def test_without_items_on_a_side_nothing_is_compared() -> None:
    one_sided = count_scores(np.arange(4.0), np.zeros(4, int), np.arange(4))
    with pytest.raises(UndefinedMetricError, match="the archive has no items"):
        ks_distance(one_sided, np.ones((1, 4)))
    with pytest.raises(UndefinedMetricError, match="the archive has no items"):
        distribution_functions(one_sided)
    both = count_scores(np.arange(4.0), np.array([0, 0, 1, 1]), np.arange(4))
    with pytest.raises(UndefinedMetricError, match="the reference has no items in at least one replicate"):
        ks_distance(both, np.array([[1, 1, 1, 1], [0, 0, 1, 1]]))
    with pytest.raises(ValueError, match="one for each subject"):
        ks_distance(both, np.ones((1, 3)))
