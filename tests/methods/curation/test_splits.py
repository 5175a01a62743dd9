from collections import Counter
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.model_selection import StratifiedGroupKFold

from methods.curation.splits import (
    Leak,
    SplitConfig,
    SplitError,
    check_splits,
    conflicting_samples,
    extend_split,
    fold_groups,
    leaking_subjects,
    split_groups,
    split_subjects,
)

CONFIG = SplitConfig()
calm = settings(max_examples=40, deadline=None)  # machines that are shared are slow at times
SPLITS = {"train", "validation", "test"}
cohorts = st.tuples(st.integers(1, 30), st.integers(0, 30)).filter(lambda counts: sum(counts) >= 3)


def cohort(normal: int, abnormal: int, *, samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
    subjects = [f"n{i}" for i in range(normal)] + [f"a{i}" for i in range(abnormal)]
    return np.repeat(subjects, samples), np.repeat([False] * normal + [True] * abnormal, samples)


def count(normal: int, abnormal: int, config: SplitConfig = CONFIG) -> dict[str, Counter[str]]:
    subject_ids, is_abnormal = cohort(normal, abnormal)
    splits = split_subjects(subject_ids, is_abnormal, config=config)
    return {"normal": Counter(splits[~is_abnormal].tolist()), "abnormal": Counter(splits[is_abnormal].tolist())}


@calm
@given(counts=cohorts, samples=st.integers(1, 4), seed=st.integers(0, 50))
def test_a_subject_is_in_one_split_and_every_split_has_a_subject(counts: tuple[int, int], samples: int, seed: int) -> None:
    subject_ids, abnormal = cohort(*counts, samples=samples)
    splits = split_subjects(subject_ids, abnormal, config=SplitConfig(seed=seed))
    assert leaking_subjects(subject_ids, splits) == []
    assert set(splits.tolist()) == SPLITS


@calm
@given(counts=cohorts, seed=st.integers(0, 50))
def test_subjects_with_an_abnormal_sample_never_train_even_with_their_normal_samples(counts: tuple[int, int], seed: int) -> None:
    subject_ids, abnormal = cohort(*counts, samples=3)
    abnormal[1::3] = abnormal[2::3] = False  # one abnormal sample in three
    splits = split_subjects(subject_ids, abnormal, config=SplitConfig(seed=seed))
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


# ---- groups of many samples, labels and sources


class Cohort:
    """Rows of groups: (normal, abnormal, unknown samples, source) each."""

    def __init__(self, groups: list[tuple[int, int, int, int]], *, prefix: str = "g") -> None:
        sizes = [normal + abnormal + unknown for normal, abnormal, unknown, _ in groups]
        self.ids = np.repeat([f"{prefix}{i}" for i in range(len(groups))], sizes).astype(object)
        labels = [label for n, a, u, _ in groups for label in [False] * n + [True] * a + [None] * u]
        self.abnormal = pd.array(labels, dtype="boolean")
        self.normal = (~self.abnormal).fillna(False).to_numpy(bool)
        self.sources = np.repeat([f"d{source}" for *_, source in groups], sizes)
        self.is_abnormal = self.abnormal.fillna(False).to_numpy(bool)


mixed_groups = st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)).filter(
    lambda group: sum(group[:3]) > 0
)
pure_groups = st.tuples(st.integers(1, 12), st.booleans(), st.integers(0, 2)).map(
    lambda group: (0, group[0], 0, group[2]) if group[1] else (group[0], 0, 0, group[2])
)
PLENTY = [(2, 0, 0, 0), (1, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 1)]  # so that every split can be filled
cohorts_of_groups = st.lists(mixed_groups, max_size=25).map(lambda groups: Cohort(PLENTY + groups))


def tally(splits: np.ndarray, chosen: np.ndarray) -> Counter[Any]:
    return Counter(splits[chosen].tolist())


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
    with pytest.raises(SplitError, match=r"'b' \(test: row 1, train: row 2\)"):
        split_groups(ids, np.zeros(4, bool), prescribed=prescribed, config=CONFIG)


def test_on_demand_such_a_group_keeps_its_test_samples_and_drops_the_others() -> None:
    ids = np.array(["a", "b", "b", "b", "c", "d"])
    prescribed = np.array(["train", "test", "train", None, None, "validation"], object)
    config = SplitConfig(on_conflict="exclude")
    splits = split_groups(ids, np.zeros(6, bool), prescribed=prescribed, config=config)
    assert splits[[0, 1, 2, 3, 5]].tolist() == ["train", "test", None, "test", "validation"]
    assert np.flatnonzero(conflicting_samples(ids, prescribed, config=config)).tolist() == [2]


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


# ---- exact counts


FIRST_PAPER = {"train": {"normal": 250}, "validation": {"normal": 20, "abnormal": 42}, "test": {"normal": 76, "abnormal": 148}}


def tallies(cohort: Cohort, splits: np.ndarray) -> dict[str, Counter[Any]]:
    return {"normal": tally(splits, cohort.normal), "abnormal": tally(splits, cohort.is_abnormal)}


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_of_the_first_paper_are_met_by_whole_subjects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    torsos = [(int(n), 0, 0, 0) for n in rng.multinomial(160 - 2 * 36, np.ones(36) / 36) + 2]  # 160 normal patches of 36 torsos
    others = [(1, 0, 0, 1)] * 186 + [(0, int(n), 0, 2) for n in rng.multinomial(158 - 60, np.ones(60) / 60) + 1] + [(0, 1, 0, 3)] * 32
    cohort = Cohort(torsos + others)
    splits = split_groups(cohort.ids, cohort.abnormal, sources=cohort.sources, config=SplitConfig(seed=seed, counts=FIRST_PAPER))
    assert leaking_subjects(cohort.ids, splits) == []
    assert tallies(cohort, splits) == {
        "normal": {"train": 250, "validation": 20, "test": 76},
        "abnormal": {"validation": 42, "test": 148},
    }


def test_totals_keep_the_ratio_of_labels_as_isic_2020_was_split() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.multinomial(33_126 - 2056, rng.dirichlet(np.full(2056, 0.8))) + 1
    melanomas = rng.multivariate_hypergeometric(sizes, 584, method="marginals")
    cohort = Cohort([(int(n - m), int(m), 0, 0) for n, m in zip(sizes, melanomas, strict=True)])
    counts = {"train": {"total": 19_875}, "validation": {"total": 6_625}, "test": {"total": 6_626}}
    splits = split_groups(cohort.ids, cohort.abnormal, config=SplitConfig(train_on="both", counts=counts))
    assert leaking_subjects(cohort.ids, splits) == []
    assert tallies(cohort, splits) == {
        "normal": {"train": 19_525, "validation": 6_508, "test": 6_509},
        "abnormal": {"train": 350, "validation": 117, "test": 117},
    }


def test_counts_by_finding_as_isic_2018_was_split_leave_the_rest_unused() -> None:
    findings = np.repeat(["NV", "MEL", "BCC", "DF", None], [671, 111, 51, 12, 3])
    ids = np.r_[np.arange(600) // 3, 600 + np.arange(71), 1000 + np.arange(177) // 2]
    counts = {"train": {"normal": 637}, "validation": {"normal": 9}, "test": {"normal": 25, "abnormal_each": 10}}
    splits = split_groups(ids, findings != "NV", findings=findings, config=SplitConfig(counts=counts))
    assert tally(splits, findings == "NV") == {"train": 637, "validation": 9, "test": 25}
    for finding in ("MEL", "BCC", "DF"):
        assert tally(splits, findings == finding)["test"] == 10
    assert tally(splits, pd.isna(findings)) == {None: 3}
    named = SplitConfig(counts={"test": {"abnormal": {"MEL": 7}}})
    assert Counter(split_groups(ids, findings != "NV", findings=findings, config=named).tolist()) == {"test": 7, None: 841}
    with pytest.raises(SplitError, match="need the findings"):
        split_groups(ids, findings != "NV", config=named)


def test_a_label_that_the_counts_do_not_name_stays_unused_in_the_groups_that_are_drawn() -> None:
    cohort = Cohort([(5, 0, 0, 0)] * 6 + [(9, 4, 1, 0)] * 5)  # tumour slides hold normal tiles too
    counts = {"train": {"normal": 20}, "validation": {"abnormal": 8}, "test": {"normal": 10, "abnormal": 0}}
    splits = split_groups(cohort.ids, cohort.abnormal, config=SplitConfig(counts=counts))
    assert tally(splits, cohort.is_abnormal) == {"validation": 8, None: 12}
    assert tally(splits, cohort.normal) == {"train": 20, "test": 10, None: 45}
    assert tally(splits, cohort.abnormal.isna()) == {None: 5}


@calm
@given(
    groups=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9), st.sampled_from([None, "train", "validation", "test"])), max_size=25),
    seed=st.integers(0, 9),
)
def test_counts_that_some_division_of_the_groups_has_are_met_exactly(groups: list[tuple[int, int, str | None]], seed: int) -> None:
    groups = [group for group in groups if group[0] + group[1] > 0]
    cohort = Cohort([(normal, abnormal, 0, 0) for normal, abnormal, _ in groups])
    wanted = {
        name: {
            "normal": sum(normal for normal, _, split in groups if split == name),
            "abnormal": sum(abnormal for _, abnormal, split in groups if split == name),
        }
        for name in SPLITS
    }
    if not any(sum(count.values()) for count in wanted.values()):
        return
    splits = split_groups(cohort.ids, cohort.abnormal, config=SplitConfig(seed=seed, train_on="both", counts=wanted))
    found = tallies(cohort, splits)
    assert {name: {label: found[label][name] for label in ("normal", "abnormal")} for name in SPLITS} == wanted
    assert leaking_subjects(cohort.ids, splits) == []


@calm
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=9), target=st.integers(1, 150))
def test_the_nearest_reachable_counts_are_named_as_trying_all_sets_finds_them(sizes: list[int], target: int) -> None:
    cohort = Cohort([(size, 0, 0, 0) for size in sizes])
    sums = {sum(size for size, taken in zip(sizes, choice, strict=True) if taken) for choice in product([0, 1], repeat=len(sizes))}
    config = SplitConfig(counts={"train": {"normal": target}})
    if target in sums:
        assert tally(split_groups(cohort.ids, cohort.abnormal, config=config), cohort.normal)["train"] == target
        return
    below, above = max(total for total in sums if total < target), min((total for total in sums if total > target), default=None)
    nearest = f"only {below} are there" if above is None else f"whole groups reach {below} or {above}"
    with pytest.raises(SplitError, match=f"train: {target} normal asked, {nearest}"):
        split_groups(cohort.ids, cohort.abnormal, config=config)


def test_counts_that_exclude_each_other_are_an_error_with_the_nearest() -> None:
    cohort = Cohort([(size, 0, 0, 0) for size in (6, 5, 4)])
    counts = {"train": {"normal": 9}, "validation": {"normal": 6}}
    assert tallies(cohort, split_groups(cohort.ids, cohort.abnormal, config=SplitConfig(counts=counts)))["normal"] == {
        "train": 9,
        "validation": 6,
    }
    counts = {"train": {"normal": 9}, "validation": {"normal": 5}}
    with pytest.raises(SplitError, match=r"cannot be met together .*; the nearest found: train: \d+ normal; validation: \d+ normal"):
        split_groups(cohort.ids, cohort.abnormal, config=SplitConfig(counts=counts))
    counts = {"train": {"normal": 11}, "validation": {"normal": 10}}
    with pytest.raises(SplitError, match="21 normal asked in all, only 15 are there"):
        split_groups(cohort.ids, cohort.abnormal, config=SplitConfig(counts=counts))


def test_counts_draw_prescribed_groups_only_for_their_split() -> None:
    cohort = Cohort([(3, 0, 0, 0)] * 20)
    prescribed = np.repeat(["train", "test"], 30)
    config = SplitConfig(counts={"train": {"normal": 21}, "test": {"normal": 12}})
    splits = split_groups(cohort.ids, cohort.abnormal, prescribed=prescribed, config=config)
    assert Counter(splits[:30].tolist()) == {"train": 21, None: 9}
    assert Counter(splits[30:].tolist()) == {"test": 12, None: 18}


def test_counts_draw_each_source_in_proportion_and_differ_by_seed() -> None:
    ids, sources = np.arange(300), np.repeat(["a", "b"], [200, 100])
    drawn = [
        split_groups(ids, np.zeros(300, bool), sources=sources, config=SplitConfig(seed=seed, counts={"train": {"normal": 90}}))
        for seed in (0, 1)
    ]
    assert tally(drawn[0] == "train", sources == "a")[True] in range(58, 63)
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"counts": {"train": {"abnormal": 3}}}, "needs train_on: both"),
        ({"counts": {"train": {"total": 3}}}, "needs train_on: both"),
        ({"counts": {"test": {"abnormal": 3, "abnormal_each": 2}}}, "not both"),
        ({"train_on": "both", "counts": {"test": {"total": 3, "normal": 2}}}, "give total alone"),
        ({"counts": {"trian": {"normal": 3}}}, "trian"),
    ],
)
def test_counts_that_contradict_themselves_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SplitConfig.model_validate(values)


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
    assert leaking_subjects(ids, grown) == []
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


def test_counts_that_are_met_stay_met_when_the_archive_grows() -> None:
    config = SplitConfig(counts={"train": {"normal": 4}})
    previous = split_groups(np.arange(6), np.zeros(6, bool), config=config)
    before = np.r_[previous, [None] * 3]
    grown = extend_split(np.r_[np.arange(6), 0, 7, 8], np.zeros(9, bool), previous=before, config=config)
    assert grown.tolist() == before.tolist()


# ---- folds


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


# ---- leaks in any manifest


def manifest(**columns: list[Any]) -> pd.DataFrame:
    rows = len(columns["split"])
    table = {"sample_id": [f"s{i}" for i in range(rows)], "subject_id": [f"p{i}" for i in range(rows)], "dataset": "d"}
    return pd.DataFrame(table | columns)


def test_each_kind_of_leak_is_found_with_its_rows() -> None:
    split = ["train", "test", "validation", "train", "test"]
    assert check_splits(manifest(split=split, subject_id=["a", "b", "c", "d", "a"])) == [
        Leak("subject", "d/a", ("test", "train"), (0, 4), ("s0", "s4"))
    ]
    for kind, column in (("lesion", "lesion_id"), ("slide", "slide_id")):
        leaks = check_splits(manifest(split=split, **{column: [None, "x", "x", "x", None]}))
        assert leaks == [Leak(kind, "d/x", ("test", "train", "validation"), (1, 2, 3), ("s1", "s2", "s3"))]  # type: ignore[arg-type]
    for kind, column in (("duplicate", "duplicate_group"), ("group", "group_id")):
        assert check_splits(manifest(split=split, **{column: [7, 8, 8, 9, None]})) == [
            Leak(kind, "8.0", ("test", "validation"), (1, 2), ("s1", "s2"))  # type: ignore[arg-type]
        ]
    assert str(check_splits(manifest(split=split, group_id=list("abcda")))[0]) == "group 'a' is in test and train (2 rows, first 0)"


def test_the_same_pixels_leak_and_other_windows_of_the_same_file_do_not() -> None:
    table = manifest(split=["train", "test", "test"], sha256=["ab" * 32] * 3, x_px=[0, 0, 64], width_px=[64, 64, 64], frame=[None] * 3)
    assert [(leak.kind, leak.key, leak.rows) for leak in check_splits(table)] == [("duplicate", f"{'ab' * 8}… (0, 64)", (0, 1))]
    assert check_splits(table.iloc[1:]) == []
    table["frame"] = ["images:1", "images:2", "images:2"]
    assert check_splits(table) == []


def test_ids_hold_within_a_data_set_unless_told_otherwise() -> None:
    table = manifest(split=["train", "test"], subject_id=["1", "1"], dataset=["a", "b"])
    assert check_splits(table) == []
    assert [leak.key for leak in check_splits(table, across_datasets=True)] == ["1"]


def test_excluded_rows_and_rows_without_split_leak_nothing() -> None:
    table = manifest(split=["train", "test", None, "test"], subject_id=["a", "a", "a", "b"], excluded=[None, "blurred", None, None])
    assert check_splits(table) == []
    table.loc[2, "subject_id"] = None
    assert check_splits(table) == []
    table.loc[3, "subject_id"] = None
    with pytest.raises(SplitError, match="row 3 has no subject_id"):
        check_splits(table)


def test_a_table_without_the_column_that_would_prove_it_is_refused() -> None:
    with pytest.raises(SplitError, match="subject_id is missing"):
        check_splits(pd.DataFrame({"split": ["train"]}))


@calm
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.sampled_from(["d", "e", None]), st.sampled_from([None, "x", "y"]), st.sampled_from([*SPLITS, None])
        ),
        max_size=30,
    )
)
def test_leaks_are_those_that_comparing_every_pair_finds(rows: list[tuple[str, str | None, str | None, str | None]]) -> None:
    table = pd.DataFrame(rows, columns=["subject_id", "dataset", "lesion_id", "split"], dtype=object)
    leaking: dict[str, set[int]] = {"subject": set(), "lesion": set()}
    for (i, one), (j, other) in product(enumerate(rows), repeat=2):
        if one[3] is not None and other[3] is not None and one[3] != other[3] and one[1] == other[1]:
            leaking["subject"] |= {i, j} if one[0] == other[0] else set()
            leaking["lesion"] |= {i, j} if one[2] == other[2] and one[2] is not None else set()
    leaks = check_splits(table)
    for kind, expected in leaking.items():
        found = [set(leak.rows) for leak in leaks if leak.kind == kind]
        assert set().union(*found) == {  # a leak also lists the rows that share a split with another of it
            i for i, row in enumerate(rows) if row[3] is not None and any(_same(row, rows[j], kind) for j in expected)
        }
        assert all(one.isdisjoint(other) for one, other in pairwise(found))


def _same(one: tuple[Any, ...], other: tuple[Any, ...], kind: str) -> bool:
    column = 0 if kind == "subject" else 2
    return one[column] is not None and (one[column], one[1]) == (other[column], other[1])
