from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from methods.curation.folds import fold_groups
from methods.curation.leaks import check_splits
from methods.curation.split_config import SplitConfig, SplitError
from methods.curation.splits import extend_split, split_groups
from tests.cohorts import PLENTY, SPLITS, Cohort, calm, cohorts_of_groups, leaking_groups, mixed_groups, pure_groups, tally

CONFIG = SplitConfig()
cohorts = st.tuples(st.integers(1, 30), st.integers(0, 30)).filter(lambda counts: sum(counts) >= 3)


def cohort(normal: int, abnormal: int, *, samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
    subjects = [f"n{i}" for i in range(normal)] + [f"a{i}" for i in range(abnormal)]
    return np.repeat(subjects, samples), np.repeat([False] * normal + [True] * abnormal, samples)


def count(normal: int, abnormal: int, config: SplitConfig = CONFIG) -> dict[str, Counter[str]]:
    subject_ids, is_abnormal = cohort(normal, abnormal)
    splits = split_groups(subject_ids, is_abnormal, config=config)
    return {"normal": Counter(splits[~is_abnormal].tolist()), "abnormal": Counter(splits[is_abnormal].tolist())}


@calm
@given(counts=cohorts, samples=st.integers(1, 4), seed=st.integers(0, 50))
def test_a_subject_is_in_one_split_and_every_split_has_a_subject(counts: tuple[int, int], samples: int, seed: int) -> None:
    subject_ids, abnormal = cohort(*counts, samples=samples)
    splits = split_groups(subject_ids, abnormal, config=SplitConfig(seed=seed))
    assert leaking_groups(subject_ids, splits) == []
    assert set(splits.tolist()) == SPLITS


@calm
@given(counts=cohorts, seed=st.integers(0, 50))
def test_subjects_with_an_abnormal_sample_never_train_even_with_their_normal_samples(counts: tuple[int, int], seed: int) -> None:
    subject_ids, abnormal = cohort(*counts, samples=3)
    abnormal[1::3] = abnormal[2::3] = False  # one abnormal sample in three
    splits = split_groups(subject_ids, abnormal, config=SplitConfig(seed=seed))
    assert not np.isin(subject_ids[splits == "train"], subject_ids[abnormal]).any()


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
    first, second = (split_groups(subject_ids, abnormal, config=SplitConfig(seed=seed)) for seed in (0, 1))
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


# ---- groups of many samples, labels and sources


@calm
@given(cohort=cohorts_of_groups, seed=st.integers(0, 9), train_on=st.sampled_from(["normal", "both"]))
def test_no_group_is_in_two_splits_and_none_with_an_anomaly_trains_unless_asked(cohort: Cohort, seed: int, train_on: Any) -> None:
    config = SplitConfig(seed=seed, train_on=train_on)
    splits = split_groups(cohort.ids, cohort.abnormal, sources=cohort.sources, config=config)
    of_group = pd.Series(splits.astype(str)).groupby(cohort.ids).nunique()
    assert (of_group == 1).all()
    assert set(splits.tolist()) - {None} == SPLITS
    known = pd.Series(~cohort.abnormal.isna()).groupby(cohort.ids).transform("any").to_numpy()
    assert (pd.isna(splits) == ~known).all()
    if train_on == "normal":
        assert not np.isin(cohort.ids[splits == "train"], cohort.ids[cohort.is_abnormal]).any()


@calm
@given(cohort=cohorts_of_groups, seed=st.integers(0, 9), shuffle=st.integers(0, 1000))
def test_the_order_of_rows_changes_neither_splits_nor_folds_nor_counts(cohort: Cohort, seed: int, shuffle: int) -> None:
    order = np.random.default_rng(shuffle).permutation(len(cohort.ids))
    counts = {"train": {"normal": 2}, "validation": {"normal": 1}, "test": {"abnormal": 1}}
    for config in (SplitConfig(seed=seed), SplitConfig(seed=seed, counts=counts)):
        splits = split_groups(cohort.ids, cohort.abnormal, sources=cohort.sources, config=config)
        again = split_groups(cohort.ids[order], cohort.abnormal[order], sources=cohort.sources[order], config=config)
        assert splits[order].tolist() == again.tolist()
    folds = fold_groups(cohort.ids, cohort.abnormal, k=3, seed=seed)
    assert folds[order].tolist() == fold_groups(cohort.ids[order], cohort.abnormal[order], k=3, seed=seed).tolist()


def deviations(cohort: Cohort, splits: np.ndarray, chosen: np.ndarray, shares: dict[str, float]) -> tuple[float, int]:
    """The largest |samples − share| over the splits, and the size of the largest group, of the chosen samples."""
    counts = tally(splits, chosen)
    worst = max(abs(counts[name] - share * chosen.sum()) for name, share in shares.items())
    return worst, max(Counter(cohort.ids[chosen].tolist()).values())


@calm
@given(groups=st.lists(pure_groups, min_size=12, max_size=60), seed=st.integers(0, 9))
def test_the_shares_of_each_label_hold_within_two_of_its_largest_groups(groups: list[tuple[int, int, int, int]], seed: int) -> None:
    cohort = Cohort(PLENTY[:4] + groups)
    splits = split_groups(cohort.ids, cohort.abnormal, sources=cohort.sources, config=SplitConfig(seed=seed, train_on="both"))
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    for chosen in (cohort.normal, cohort.is_abnormal):
        worst, largest = deviations(cohort, splits, chosen, shares)
        assert worst <= 2 * largest


def test_the_shares_hold_closely_within_each_source_and_label_of_a_large_archive() -> None:
    rng = np.random.default_rng(0)
    sizes, sources, ill = rng.lognormal(1.5, 1, 900).astype(int) + 1, rng.integers(0, 3, 900), rng.random(900) < 0.3
    cohort = Cohort([(0, int(n), 0, int(s)) if a else (int(n), 0, 0, int(s)) for n, s, a in zip(sizes, sources, ill, strict=True)])
    splits = split_groups(cohort.ids, cohort.abnormal, sources=cohort.sources, config=SplitConfig())
    for source in ("d0", "d1", "d2"):
        normal, abnormal = cohort.normal & (cohort.sources == source), cohort.is_abnormal & (cohort.sources == source)
        assert deviations(cohort, splits, normal, {"train": 0.6, "validation": 0.2, "test": 0.2})[0] <= 2
        assert deviations(cohort, splits, abnormal, {"train": 0, "validation": 0.5, "test": 0.5})[0] <= 2


def test_many_sources_of_one_group_do_not_all_train() -> None:
    sources = np.arange(100).astype(str)
    splits = split_groups(sources, np.zeros(100, bool), sources=sources, config=CONFIG)
    assert Counter(splits.tolist()) == {"train": 60, "validation": 20, "test": 20}


def test_large_groups_are_in_every_split_not_all_in_train() -> None:
    cohort = Cohort([(50, 0, 0, 0)] * 10 + [(1, 0, 0, 0)] * 100)
    splits = split_groups(cohort.ids, cohort.abnormal, config=CONFIG)
    large = np.isin(cohort.ids, [f"g{i}" for i in range(10)])
    assert tally(splits, large) == {"train": 300, "validation": 100, "test": 100}


# ---- prescribed splits


def test_prescribed_groups_stay_and_count_towards_the_shares() -> None:
    ids = np.arange(10).astype(str)
    prescribed = np.array(["test", "test", "archive", *[None] * 7], object)
    splits = split_groups(ids, np.zeros(10, bool), prescribed=prescribed, config=CONFIG)
    assert splits[:3].tolist() == ["test", "test", "archive"]
    assert Counter(splits[3:].tolist()) == {"train": 5, "validation": 2}


def test_a_group_prescribed_to_two_splits_is_named_with_its_rows() -> None:
    ids, prescribed = np.array(["a", "b", "b", "c"]), np.array(["train", "test", "train", None], object)
    with pytest.raises(SplitError, match=r"'b' \(test: row 1, train: row 2\).* with split\.on_conflict: exclude"):
        split_groups(ids, np.zeros(4, bool), prescribed=prescribed, config=CONFIG)


def test_on_demand_such_a_group_keeps_its_test_samples_and_drops_the_others() -> None:
    ids = np.array(["a", "b", "b", "b", "c", "d"])
    prescribed = np.array(["train", "test", "train", None, None, "validation"], object)
    config = SplitConfig(on_conflict="exclude")
    splits = split_groups(ids, np.zeros(6, bool), prescribed=prescribed, config=config)
    assert splits[[0, 1, 2, 3, 5]].tolist() == ["train", "test", None, "test", "validation"]


def test_abnormal_samples_of_an_official_training_list_stay_unused() -> None:
    ids, abnormal = np.array(["a", "a", "b", "c", "d"]), np.array([False, True, True, False, True])
    prescribed = np.array(["train", "train", "train", "test", "test"], object)
    assert split_groups(ids, abnormal, prescribed=prescribed, config=CONFIG).tolist() == ["train", None, None, "test", "test"]
    both = SplitConfig(train_on="both")
    assert split_groups(ids, abnormal, prescribed=prescribed, config=both).tolist() == prescribed.tolist()


def test_an_official_list_without_validation_gives_some_of_its_training() -> None:
    ids, abnormal = np.arange(50), np.r_[np.zeros(30, bool), np.ones(10, bool), np.zeros(10, bool)]
    prescribed = np.repeat(["train", "test"], [40, 10])
    splits = split_groups(ids, abnormal, prescribed=prescribed, config=SplitConfig(validation_from_train=True))
    assert Counter(splits[:30].tolist()) == {"train": 23, "validation": 7}  # 0.6 to 0.2
    assert set(splits[30:40].tolist()) == {"validation"}
    assert set(splits[40:].tolist()) == {"test"}


def test_an_unknown_split_is_refused_with_its_row() -> None:
    with pytest.raises(SplitError, match="row 1: the split is 'val'; expected train"):
        split_groups(np.array(["a", "b"]), np.zeros(2, bool), prescribed=["train", "val"], config=CONFIG)


@pytest.mark.parametrize("missing", [None, "", "  ", float("nan")])
def test_a_row_without_group_is_named(missing: object) -> None:
    ids = np.array(["a", "b", missing, "c"], object)
    for call in (
        lambda: split_groups(ids, np.zeros(4, bool), config=CONFIG),
        lambda: fold_groups(ids, np.zeros(4), k=2, seed=0),
        lambda: check_splits(pd.DataFrame({"subject_id": ids, "split": "train"})),
    ):
        with pytest.raises(SplitError, match=r"row 2 has no (group id|subject_id) \(1 such row\(s\)\); give each its person"):
            call()


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(SplitError, match="expected 2 values of abnormal, one a row, not 3"):
        split_groups(["a", "b"], [True, False, False], config=CONFIG)


# ---- growth


@calm
@given(cohort=cohorts_of_groups, more=st.lists(mixed_groups, max_size=15), seed=st.integers(0, 9), shuffle=st.integers(0, 99))
def test_what_is_added_leaves_the_old_samples_where_they_are(cohort: Cohort, more: list[Any], seed: int, shuffle: int) -> None:
    config, new = SplitConfig(seed=seed), Cohort(more, prefix="new")
    previous = split_groups(cohort.ids, cohort.abnormal, sources=cohort.sources, config=config)
    ids, labels = np.r_[cohort.ids, new.ids], pd.array([*cohort.abnormal, *new.abnormal], dtype="boolean")
    sources, before = np.r_[cohort.sources, new.sources], np.r_[previous, np.full(len(new.ids), None, object)]
    grown = extend_split(ids, labels, sources=sources, previous=before, config=config)
    old = np.flatnonzero(~pd.isna(before))
    assert grown[old].tolist() == before[old].tolist()
    assert leaking_groups(ids, grown) == []
    order = np.random.default_rng(shuffle).permutation(len(ids))
    again = extend_split(ids[order], labels[order], sources=sources[order], previous=before[order], config=config)
    assert again.tolist() == grown[order].tolist()


def test_new_groups_restore_the_shares() -> None:
    previous = np.array(["train"] * 10 + [None] * 20, object)
    splits = extend_split(np.arange(30), np.zeros(30, bool), previous=previous, config=CONFIG)
    assert Counter(splits.tolist()) == {"train": 18, "validation": 6, "test": 6}


def test_a_new_sample_takes_the_split_of_its_group_but_an_anomaly_never_trains() -> None:
    ids, abnormal = np.array(["a", "b", "c", "a", "b", "a"]), np.array([False, False, True, False, True, True])
    previous = np.array(["train", "validation", "test", None, None, None], object)
    assert extend_split(ids, abnormal, previous=previous, config=CONFIG).tolist()[3:] == ["train", "validation", None]


def test_a_new_sample_that_joins_groups_of_two_splits_is_a_conflict() -> None:
    ids, previous = np.array(["a", "a", "a", "b"]), np.array(["train", "test", None, "validation"], object)
    with pytest.raises(SplitError, match=r"new samples join groups of different splits: 'a' \(test: row 1, train: row 0\)"):
        extend_split(ids, np.zeros(4, bool), previous=previous, config=CONFIG)
    splits = extend_split(ids, np.zeros(4, bool), previous=previous, config=SplitConfig(on_conflict="exclude"))
    assert splits.tolist() == [None, "test", "test", "validation"]
