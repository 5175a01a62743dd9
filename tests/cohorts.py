"""Groups of samples as splits are tested on, and what is looked at afterwards."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import settings
from hypothesis import strategies as st

from methods.curation.leaks import check_splits

calm = settings(max_examples=40, deadline=None)  # machines that are shared are slow at times
SPLITS = {"train", "validation", "test"}


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


def tallies(cohort: Cohort, splits: np.ndarray) -> dict[str, Counter[Any]]:
    return {"normal": tally(splits, cohort.normal), "abnormal": tally(splits, cohort.is_abnormal)}


def leaking_groups(ids: np.ndarray, splits: np.ndarray) -> list[str]:
    """Those that are in more than one split, sorted."""
    return [leak.key for leak in check_splits(pd.DataFrame({"subject_id": ids, "split": splits}))]
