from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from methods.curation.split_config import SplitConfig, SplitError
from methods.curation.splits import extend_split, split_groups
from tests.cohorts import SPLITS, Cohort, calm, leaking_groups, tallies, tally

FIRST_PAPER = {"train": {"normal": 250}, "validation": {"normal": 20, "abnormal": 42}, "test": {"normal": 76, "abnormal": 148}}


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_of_the_first_paper_are_met_by_whole_subjects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    torsos = [(int(n), 0, 0, 0) for n in rng.multinomial(160 - 2 * 36, np.ones(36) / 36) + 2]  # 160 normal patches of 36 torsos
    others = [(1, 0, 0, 1)] * 186 + [(0, int(n), 0, 2) for n in rng.multinomial(158 - 60, np.ones(60) / 60) + 1] + [(0, 1, 0, 3)] * 32
    cohort = Cohort(torsos + others)
    splits = split_groups(cohort.ids, cohort.abnormal, sources=cohort.sources, config=SplitConfig(seed=seed, counts=FIRST_PAPER))
    assert leaking_groups(cohort.ids, splits) == []
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
    assert leaking_groups(cohort.ids, splits) == []
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
    assert leaking_groups(cohort.ids, splits) == []


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


@pytest.mark.parametrize("seed", range(5))
def test_a_source_of_large_groups_is_in_every_split_in_proportion(seed: int) -> None:
    ids = np.concatenate([np.repeat(np.arange(36), 5), np.arange(100, 280)])  # half of the samples come five to a person
    sources = np.repeat(["bodies", "singles"], 180)
    counts = {"train": {"normal": 250}, "validation": {"normal": 20}, "test": {"normal": 76}}
    splits = split_groups(ids, np.zeros(360, bool), sources=sources, config=SplitConfig(seed=seed, counts=counts))
    for split, count in {"train": 250, "validation": 20, "test": 76}.items():
        found = tally(splits == split, sources == "bodies")[True]
        assert found == pytest.approx(count / 2, abs=5)


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


def test_counts_that_are_met_stay_met_when_the_archive_grows() -> None:
    config = SplitConfig(counts={"train": {"normal": 4}})
    previous = split_groups(np.arange(6), np.zeros(6, bool), config=config)
    before = np.r_[previous, [None] * 3]
    grown = extend_split(np.r_[np.arange(6), 0, 7, 8], np.zeros(9, bool), previous=before, config=config)
    assert grown.tolist() == before.tolist()
