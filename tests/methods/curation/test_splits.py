from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from methods.curation.splits import SplitConfig, SplitError, leaking_subjects, split_subjects

CONFIG = SplitConfig()
SPLITS = {"train", "validation", "test"}
cohorts = st.tuples(st.integers(1, 30), st.integers(0, 30)).filter(lambda counts: sum(counts) >= 3)


def cohort(normal: int, abnormal: int, *, samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
    subjects = [f"n{i}" for i in range(normal)] + [f"a{i}" for i in range(abnormal)]
    return np.repeat(subjects, samples), np.repeat([False] * normal + [True] * abnormal, samples)


def count(normal: int, abnormal: int, config: SplitConfig = CONFIG) -> dict[str, Counter[str]]:
    subject_ids, is_abnormal = cohort(normal, abnormal)
    splits = split_subjects(subject_ids, is_abnormal, config=config)
    return {"normal": Counter(splits[~is_abnormal].tolist()), "abnormal": Counter(splits[is_abnormal].tolist())}


@given(counts=cohorts, samples=st.integers(1, 4), seed=st.integers(0, 50))
def test_a_subject_is_in_one_split_and_every_split_has_a_subject(counts: tuple[int, int], samples: int, seed: int) -> None:
    subject_ids, abnormal = cohort(*counts, samples=samples)
    splits = split_subjects(subject_ids, abnormal, config=SplitConfig(seed=seed))
    assert leaking_subjects(subject_ids, splits) == []
    assert set(splits.tolist()) == SPLITS


@given(counts=cohorts, seed=st.integers(0, 50))
def test_subjects_with_an_abnormal_sample_never_train_even_with_their_normal_samples(counts: tuple[int, int], seed: int) -> None:
    subject_ids, abnormal = cohort(*counts, samples=3)
    abnormal[1::3] = abnormal[2::3] = False  # one abnormal sample in three
    splits = split_subjects(subject_ids, abnormal, config=SplitConfig(seed=seed))
    assert not np.isin(subject_ids[splits == "train"], subject_ids[abnormal]).any()


@given(counts=cohorts, seed=st.integers(0, 50), shuffle=st.randoms(use_true_random=False))
def test_the_order_and_the_number_of_rows_change_nothing(counts: tuple[int, int], seed: int, shuffle) -> None:  # type: ignore[no-untyped-def]
    subject_ids, abnormal = cohort(*counts)
    config = SplitConfig(seed=seed)
    expected = dict(zip(subject_ids, split_subjects(subject_ids, abnormal, config=config), strict=True))
    rows = [*range(len(subject_ids)), *shuffle.choices(range(len(subject_ids)), k=20)]
    shuffle.shuffle(rows)
    splits = split_subjects(subject_ids[rows], abnormal[rows], config=config)
    assert [expected[subject] for subject in subject_ids[rows]] == splits.tolist()


def test_the_shares_are_kept() -> None:
    counts = count(100, 30)
    assert counts["normal"] == {"train": 60, "validation": 20, "test": 20}
    assert counts["abnormal"] == {"validation": 15, "test": 15}


def test_abnormal_subjects_are_shared_in_the_ratio_of_validation_to_test() -> None:
    assert count(10, 40, SplitConfig(train=0.6, validation=0.1, test=0.3))["abnormal"] == {"validation": 10, "test": 30}


@pytest.mark.parametrize("normal", [3, 4, 5, 8])
def test_each_split_has_a_normal_subject_where_there_are_three(normal: int) -> None:
    assert set(count(normal, 4)["normal"]) == SPLITS


@pytest.mark.parametrize("abnormal", [2, 3, 7])
def test_validation_and_test_both_have_an_abnormal_subject_where_there_are_two(abnormal: int) -> None:
    assert set(count(5, abnormal, SplitConfig(train=0.5, validation=0.05, test=0.45))["abnormal"]) == {"validation", "test"}


def test_of_too_few_subjects_those_that_can_fill_a_split_alone_go_there() -> None:
    assert count(2, 1) == {"normal": {"train": 1, "validation": 1}, "abnormal": {"test": 1}}
    assert count(1, 2) == {"normal": {"train": 1}, "abnormal": {"validation": 1, "test": 1}}
    assert count(1, 2, SplitConfig(train=0.2, validation=0.4, test=0.4))["normal"] == {"train": 1}


def test_another_seed_gives_another_split() -> None:
    subject_ids, abnormal = cohort(20, 8)
    first, second = (split_subjects(subject_ids, abnormal, config=SplitConfig(seed=seed)) for seed in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize(
    ("normal", "abnormal", "config", "message"),
    [
        (1, 0, CONFIG, r"1 subject\(s\) cannot be divided into 3"),
        (2, 0, CONFIG, r"2 subject\(s\) cannot be divided into 3"),
        (0, 5, CONFIG, "to train on"),
        (4, 2, SplitConfig(train=1, validation=0, test=0), "give validation or test a share"),
    ],
)
def test_a_cohort_that_cannot_be_split_is_an_error(normal: int, abnormal: int, config: SplitConfig, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        count(normal, abnormal, config)


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"must be 1, not 1\.1"):
        SplitConfig(train=0.7)


def test_a_subject_in_two_splits_is_named() -> None:
    assert leaking_subjects(np.array(["b", "a", "b", "c", "c"]), np.array(["train", "test", "test", "train", "train"])) == ["b"]
    assert leaking_subjects(np.array([]), np.array([])) == []
