"""Drift's speed and the coverage of its intervals: `pytest -s -m benchmark tests/benchmarks/bench_drift.py`.

Speed: bootstrap and permutations of a million scores against a loop of scipy's distance on items that are repeated; of the loop a few
replicates are timed, which are also compared, and multiplied. Both run on one thread and are timed by their own processor time.

Coverage: how often intervals hold the truth, which is computed from four million items, over many draws of subjects; percentiles, BCa and
others beside the intervals that are used.
"""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from methods.evaluation.bootstrap import bca_levels
from methods.evaluation.distributions import bin_items, bin_levels, ks_distance, stability_index, walk
from methods.evaluation.drift import KS, PSI, DriftConfig, compare_sides
from methods.evaluation.histograms import SubjectCounts, count_scores

SCORES, REPLICATES, COMPARED = 1_000_000, 1000, 3
DRAWS = 200
CONFIG = DriftConfig(replicates=400, permutations=1)


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("subjects", [5_000, 1_000_000])
def test_print_how_much_faster_replicates_of_a_million_scores_are(subjects: int) -> None:
    rng = np.random.default_rng(0)
    subject_of = rng.permutation(np.arange(SCORES) % subjects)
    sides = (subject_of % 10 != 0).astype(int)  # a tenth of the subjects are the reference
    scores = rng.normal(size=SCORES).astype(np.float32)
    compare_sides(count_scores(scores[:200], sides[:200], subject_of[:200]), CONFIG)  # compiles
    started = time.thread_time()
    counts = count_scores(scores, sides, subject_of)
    counted_s = time.thread_time() - started
    started = time.thread_time()
    compare_sides(counts, DriftConfig(replicates=REPLICATES, permutations=REPLICATES))
    ours_s = time.thread_time() - started
    weights = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=COMPARED)
    column_of = np.argsort(np.array(counts.subjects, int))  # counts are in the order of names
    found = ks_distance(counts, weights)
    started = time.thread_time()
    for row in range(COMPARED):
        items = np.repeat(np.arange(SCORES), weights[row][column_of[subject_of]])
        chosen, side = scores[items], sides[items]
        assert found[row] == pytest.approx(stats.ks_2samp(chosen[side == 0], chosen[side == 1], method="asymp").statistic, abs=1e-12)
    theirs_s = (time.thread_time() - started) / COMPARED * 2 * REPLICATES
    peak_mb = int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024
    print(f"\n{SCORES:,} scores of {subjects:,} subjects, {REPLICATES} replicates and {REPLICATES} permutations of all figures:")  # noqa: T201
    print(f"{ours_s:.1f} s (and {counted_s:.1f} s to count), scipy's distance alone {theirs_s:.0f} s: {theirs_s / ours_s:.0f} times faster")  # noqa: T201
    print(f"peak memory of the process with all libraries: {peak_mb:.0f} MB")  # noqa: T201


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("subjects", [15, 60])
def test_print_how_often_intervals_hold_the_truth(subjects: int, shift: float) -> None:
    large = draw_sides(np.random.default_rng(99), subjects=200_000, shift=shift)
    truth = dict(zip((KS, PSI), figures_of(large, np.ones((1, len(large.subjects))))[:, 0], strict=True))
    truth = {name: value if shift else 0.0 for name, value in truth.items()}
    covered: dict[tuple[str, str], list[bool]] = {}
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        counts = draw_sides(rng, subjects=subjects, shift=shift)
        drift = compare_sides(counts, CONFIG)
        for name, ends in others(counts, rng).items():
            covered.setdefault(name, []).append(ends[0] <= truth[name[0]] <= ends[1])
        for name in truth:
            figure = drift.figure(name)
            assert figure.low is not None
            assert figure.high is not None
            covered.setdefault((name, figure.method), []).append(figure.low - 1e-9 <= truth[name] <= figure.high)
    print(f"\n{subjects} subjects a side, shift {shift}: truth {', '.join(f'{name} {value:.3f}' for name, value in truth.items())}")  # noqa: T201
    print(", ".join(f"{name} {method} {np.mean(held):.3f}" for (name, method), held in sorted(covered.items())))  # noqa: T201


def draw_sides(rng: np.random.Generator, *, subjects: int, shift: float) -> SubjectCounts:
    """Ten items a subject, half of their variance between subjects."""
    subject = np.repeat(np.arange(2 * subjects), 10)
    archive = subject >= subjects
    scores = rng.normal(0, 1, 2 * subjects)[subject] + rng.normal(0, 1, len(subject)) + shift * archive
    return count_scores(scores, archive.astype(int), subject)


def figures_of(counts: SubjectCounts, weights: np.ndarray) -> np.ndarray:
    found = walk(counts, weights, levels=bin_levels(10))
    return np.stack([found.distance[2], stability_index(*bin_items(found))])


def others(counts: SubjectCounts, rng: np.random.Generator) -> dict[tuple[str, str], tuple[float, float]]:
    """Intervals that are not used: percentiles, BCa and the basic one."""
    archive = counts.carries_anomaly
    weights = np.ones((1 + CONFIG.replicates + len(archive), len(archive)))
    for side in (archive, ~archive):
        weights[1 : 1 + CONFIG.replicates, side] = rng.multinomial(side.sum(), np.full(side.sum(), 1 / side.sum()), size=CONFIG.replicates)
    np.fill_diagonal(weights[1 + CONFIG.replicates :], 0)
    ends: dict[tuple[str, str], tuple[float, float]] = {}
    for name, values in zip((KS, PSI), figures_of(counts, weights), strict=True):
        replicates, left_out = np.split(values[1:], [CONFIG.replicates])
        low, high = np.quantile(replicates, (0.025, 0.975))
        ends[name, "percentile"] = low, high
        corrected = bca_levels(values[0], replicates, left_out, archive, (0.025, 0.975))
        ends[name, "BCa or percentile"] = (low, high) if corrected is None else tuple(np.quantile(replicates, corrected))
        ends[name, "basic"] = max(0.0, 2 * values[0] - high), max(0.0, 2 * values[0] - low)
    return ends
