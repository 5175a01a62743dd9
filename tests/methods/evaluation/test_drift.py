"""Intervals and p-values of drift: right without drift, sharp with it, over subjects and not items; nothing where nothing can be said."""

import numpy as np
import pytest

from methods.evaluation.drift import KS, PSI, Drift, DriftConfig, compare_sides
from methods.evaluation.histograms import SubjectCounts, count_scores
from methods.evaluation.metrics import UndefinedMetricError

QUICK = DriftConfig(replicates=99, permutations=99)


def draw_sides(rng: np.random.Generator, *, subjects: int, shift: float = 0.0, items: int = 8, spread: float = 1.0) -> SubjectCounts:
    """As many subjects on each side, with their own means; the archive's are shifted."""
    subject = np.repeat(np.arange(2 * subjects), items)
    archive = subject >= subjects
    means = rng.normal(0, spread, 2 * subjects)
    return count_scores(means[subject] + rng.normal(0, 0.5, len(subject)) + shift * archive, archive.astype(int), subject)


def compare(counts: SubjectCounts, **options: object) -> Drift:
    return compare_sides(counts, QUICK.model_copy(update=options))


def test_without_drift_p_is_uniform_and_intervals_hold_no_drift() -> None:
    rng = np.random.default_rng(0)
    found = [compare(draw_sides(rng, subjects=10, items=4)) for _ in range(150)]
    for name in (KS, PSI, "median", "mean"):
        p = np.array([drift.figure(name).p for drift in found])
        for level in (0.05, 0.2, 0.5, 0.8):
            assert (p <= level).mean() == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / len(p)))
    for name in (KS, PSI):
        assert np.mean([drift.figure(name).low == 0 for drift in found]) > 0.9
    for name in ("mean", "median"):
        assert np.mean([drift.figure(name).low <= 0 <= drift.figure(name).high for drift in found]) > 0.85  # type: ignore[operator]


def test_items_of_few_subjects_are_no_evidence() -> None:
    """Five subjects a side with 200 items each differ by chance; a test over items would swear that they drift."""
    found = [compare(draw_sides(np.random.default_rng(seed), subjects=5, items=200)) for seed in range(20)]
    assert np.mean([drift.figure(PSI).value > 0.25 for drift in found]) >= 0.9
    assert np.mean([drift.figure(PSI).p < 0.05 for drift in found]) <= 0.15
    assert np.mean([drift.figure(PSI).unchanged > 0.5 for drift in found]) >= 0.8


def test_drift_is_seen_and_its_size_is_within_its_interval() -> None:
    counts = draw_sides(np.random.default_rng(1), subjects=60, shift=1.5)
    drift = compare_sides(counts, DriftConfig(), thresholds={"called": 2.0})
    assert drift.items == (480, 480)
    assert drift.subjects == (60, 60)
    for figure in drift.figures:
        assert figure.low is not None
        assert figure.high is not None
        assert 0 < figure.low < figure.value < figure.high
        assert figure.p == pytest.approx(1 / 1001)
        assert figure.unchanged < figure.value
    for name in ("mean", "median", "95th percentile"):
        assert drift.figure(name).low < 1.5 < drift.figure(name).high  # type: ignore[operator]
    assert [figure.method for figure in drift.figures] == [
        "band",
        "percentile less bias",
        "percentile",
        "percentile",
        "percentile",
        "BCa",
        "BCa",
    ]
    assert drift.bands is not None
    assert all(0 < width < 0.5 for width in drift.bands)


def test_shares_means_and_quantiles_are_those_of_the_items() -> None:
    reference, archive = np.arange(10.0), np.arange(5.0, 15)
    counts = count_scores(np.concatenate([reference, archive]), np.repeat([0, 1], 10), np.arange(20))
    drift = compare_sides(counts, QUICK, thresholds={"from 8 on": 8.0})
    shown = {figure.name: (figure.reference, figure.archive, figure.value) for figure in drift.figures}
    assert shown["mean"] == (4.5, 9.5, 5.0)
    assert shown["median"] == (4, 9, 5)
    assert shown["99th percentile"] == (9, 14, 5)
    assert shown["from 8 on"] == pytest.approx((0.2, 0.7, 0.5))
    assert shown[KS] == (None, None, 0.5)
    assert [(found.low, found.high, found.reference, found.archive) for found in drift.bins[-2:]] == [(7, 8, 1, 1), (8, None, 1, 6)]
    assert sum(found.archive for found in drift.bins) == 10


def test_one_seed_gives_one_answer() -> None:
    counts = draw_sides(np.random.default_rng(2), subjects=6)
    assert compare(counts) == compare(counts)
    assert compare(counts) != compare(counts, seed=1)


def test_a_subject_on_both_sides_is_compared_with_itself() -> None:
    """Subjects differ by far, each has the same shift from one side to the other: only pairs show it."""
    rng = np.random.default_rng(3)
    means = np.repeat(rng.normal(0, 10, 12), 6)
    scores = np.concatenate([means, means + 0.5]) + rng.normal(0, 0.1, 144)
    paired = np.tile(np.repeat(np.arange(12), 6), 2)
    apart = np.concatenate([paired[:72], paired[72:] + 100])
    sides = np.repeat([0, 1], 72)
    figure = compare(count_scores(scores, sides, paired)).figure("mean")
    assert figure.p <= 0.02
    assert 0.4 < figure.low < figure.high < 0.6  # type: ignore[operator]
    assert compare(count_scores(scores, sides, apart)).figure("mean").p > 0.5


def test_drift_of_new_subjects_is_seen_where_all_of_the_reference_comes_again() -> None:
    """Ten subjects come again as they were, thirty others are new: shifted they are seen, and not shifted they are no drift."""
    subject = np.concatenate([np.repeat(np.arange(10), 4), np.repeat(np.arange(40), 4)])
    sides = np.repeat([0, 1], [40, 160])
    p = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=40)[subject] + rng.normal(0, 0.5, 200)
        p.append(compare(count_scores(scores, sides, subject)).figure(KS).p)
        assert seed or compare(count_scores(scores + 4 * (subject >= 10), sides, subject)).figure(KS).p == 0.01
    assert np.mean(np.array(p) <= 0.2) <= 0.3


def test_one_subject_on_a_side_has_figures_and_no_interval() -> None:
    counts = count_scores(np.arange(30.0), (np.arange(30) >= 20).astype(int), np.minimum(np.arange(30) // 2, 10))
    drift = compare(counts)
    assert drift.subjects == (10, 1)
    assert drift.bands is None
    for figure in drift.figures:
        assert (figure.low, figure.high) == (None, None)
        assert figure.method == "no interval: it needs two subjects on each side; the reference has 10, the archive 1"
    assert drift.figure(KS).value == 1
    assert drift.figure(KS).p > 1 / 11 - 0.06  # one of eleven subjects is the archive: no p is much below


def test_a_lone_subject_on_both_sides_hinders_no_interval() -> None:
    subjects = np.concatenate([np.arange(20), [19], np.arange(20, 39)])
    counts = count_scores(np.random.default_rng(4).normal(size=40), np.repeat([0, 1], 20), subjects)
    assert all(figure.low is not None for figure in compare(counts).figures)


def test_equal_scores_have_no_drift_and_no_interval() -> None:
    drift = compare(count_scores(np.ones(12), np.arange(12) % 2, np.arange(12)))
    for figure in drift.figures:
        assert (figure.value, figure.low, figure.p) == (0, None, 1)
        assert "the same in all replicates" in figure.method
    assert len(drift.bins) == 1


def test_an_empty_side_is_an_error() -> None:
    with pytest.raises(UndefinedMetricError, match="the reference has no items"):
        compare(count_scores(np.arange(4.0), np.ones(4, int), np.arange(4)))
