import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from methods.curation.folds import fold_groups
from methods.curation.split_config import SplitError
from tests.cohorts import Cohort, calm, cohorts_of_groups


@calm
@given(cohort=cohorts_of_groups, k=st.integers(2, 5), seed=st.integers(0, 9))
def test_a_group_is_in_one_fold_and_every_fold_has_one(cohort: Cohort, k: int, seed: int) -> None:
    folds = fold_groups(cohort.ids, cohort.abnormal, k=k, seed=seed)
    assert (pd.Series(folds).groupby(cohort.ids).nunique() == 1).all()
    assert set(folds.tolist()) == set(range(k))


def test_folds_are_balanced_no_worse_than_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    cohort = Cohort([(int(n), int(m), 0, 0) for n, m in zip(rng.lognormal(1.5, 1, 300) + 1, rng.poisson(0.3, 300), strict=True)])
    y = cohort.is_abnormal.astype(int)
    folds, theirs = fold_groups(cohort.ids, y, k=5, seed=0), np.empty(len(y), int)
    for fold, (_, rows) in enumerate(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(y, y, cohort.ids)):
        theirs[rows] = fold
    for label in (0, 1):
        ours_spread, their_spread = (np.ptp(np.bincount(assigned[y == label], minlength=5)) for assigned in (folds, theirs))
        assert ours_spread <= max(their_spread, 2)
    assert (folds != fold_groups(cohort.ids, y, k=5, seed=1)).any()


def test_fewer_groups_than_folds_is_an_error() -> None:
    with pytest.raises(SplitError, match=r"2 group\(s\) cannot be divided into 3 folds"):
        fold_groups(["a", "a", "b"], [0, 1, 0], k=3, seed=0)
