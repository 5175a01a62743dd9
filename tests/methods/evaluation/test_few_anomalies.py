"""Placements against scikit-learn's AUROC; draws that are even, seeded and no larger than what there is; the study by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import roc_auc_score

from methods.evaluation.few_anomalies import TooFewAnomaliesError, choose, draw_of, draw_types, place, study_draws

KINDS = np.array(["a"] * 5 + ["b"] * 3 + ["c"] * 12)
SCORES = st.integers(-3, 3).map(float)


@given(arrays.arrays(float, st.integers(1, 20), elements=SCORES), arrays.arrays(float, st.integers(1, 20), elements=SCORES))
def test_the_mean_placement_is_the_auroc(normal: np.ndarray, abnormal: np.ndarray) -> None:
    expected = roc_auc_score([0] * len(normal) + [1] * len(abnormal), np.concatenate([normal, abnormal]))
    assert place(normal, abnormal).mean() == pytest.approx(expected)


def test_a_placement_among_no_normal_score_is_undefined() -> None:
    with pytest.raises(ValueError, match="at least one normal"):
        place(np.empty(0), np.ones(2))


@pytest.mark.parametrize(("count", "shares"), [(6, [3, 3]), (7, [4, 3]), (8, [5, 3])])
def test_a_draw_takes_its_types_alike_as_far_as_there_are(count: int, shares: list[int]) -> None:
    for seed in range(20):
        drawn = draw_of(KINDS, types=("a", "b"), count=count, rng=np.random.default_rng(seed))
        assert len(set(drawn.positions.tolist())) == count
        found = [int((KINDS[drawn.positions] == name).sum()) for name in ("a", "b")]
        assert sorted(found, reverse=True) == shares


def test_a_draw_depends_on_the_seed_alone() -> None:
    one, same, other = (draw_of(KINDS, types=("c",), count=4, rng=np.random.default_rng(seed)).positions.tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_types_are_drawn_among_those_that_have_their_share() -> None:
    drawn = {draw_types(KINDS, types=2, count=10, rng=np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {("a", "c")}
    assert {draw_types(KINDS, types=1, count=3, rng=np.random.default_rng(seed)) for seed in range(40)} == {("a",), ("b",), ("c",)}


def test_more_than_there_are_is_refused_with_the_counts() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(TooFewAnomaliesError, match="9 anomalies are asked for, and there are 5 of 'a', 3 of 'b'"):
        draw_of(KINDS, types=("a", "b"), count=9, rng=rng)
    with pytest.raises(TooFewAnomaliesError, match="no anomaly of type 'z'; there are 5 of 'a', 3 of 'b', 12 of 'c'"):
        draw_of(KINDS, types=("a", "z"), count=1, rng=rng)
    with pytest.raises(TooFewAnomaliesError, match=r"12 anomalies of 3 type\(s\) need 3 with 4 each, and there are 5 of 'a'"):
        draw_types(KINDS, types=3, count=12, rng=rng)


def test_the_first_of_equally_good_trials_is_chosen_and_failed_ones_never() -> None:
    assert choose(np.array([0.5, np.nan, 0.9, 0.9])) == (2, 2)
    with pytest.raises(ValueError, match="no trial"):
        choose(np.full(3, np.nan))


def test_a_study_looks_up_the_test_value_of_what_each_draw_chose() -> None:
    placements = np.array([[1.0] * 5 + [0.0] * 15, [0.0] * 5 + [1.0] * 15, [np.nan] * 20])  # one trial for "a", one for all others
    points = study_draws(placements, KINDS, np.array([0.6, 0.8, np.nan]), types=(1, 3), counts=(2, 5), draws=7, seed=3)
    assert [(point.types, point.count) for point in points] == [(1, 2), (1, 5), (3, 5)]
    for point in points:
        assert len(point.chosen) == 7
        assert point.values == tuple([0.6, 0.8][trial] for trial in point.chosen)
    few = points[0]
    assert set(few.chosen) == {0, 1}
    assert few.mean == pytest.approx(np.mean(few.values))
    assert few.deviation == pytest.approx(np.std(few.values, ddof=1))
    again = study_draws(placements, KINDS, np.array([0.6, 0.8, np.nan]), types=(1,), counts=(5,), draws=7, seed=3)
    assert again == [points[1]]  # a point does not depend on what else is studied
