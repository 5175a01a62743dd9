"""Splits by subject: no person is in two of them, and what is learnt from is normal."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator


class SplitError(ValueError):
    """Too few subjects for the splits that were asked for."""


class SplitConfig(BaseModel):
    """Shares of the normal subjects; abnormal ones go to validation and test in the ratio of these two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: float = Field(default=0.6, ge=0, le=1)
    validation: float = Field(default=0.2, ge=0, le=1)
    test: float = Field(default=0.2, ge=0, le=1)
    seed: int = 0

    @model_validator(mode="after")
    def _sum_to_one(self) -> "SplitConfig":
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, not {self.train + self.validation + self.test:g}")
        return self


def split_subjects(subject_ids: np.ndarray, abnormal: np.ndarray, *, config: SplitConfig) -> np.ndarray:
    """The split of each sample.

    All samples of a subject share a split. Subjects with an abnormal sample never train. The result depends on the set of subjects and
    on the seed, not on the order of rows or on how many samples a subject has.

    Args:
        subject_ids: (N,) str.
        abnormal: (N,) bool.
        config: shares and seed.

    Returns:
        (N,) of "train", "validation", "test".

    Raises:
        SplitError: no normal subject to train on, abnormal ones and neither validation nor test, or fewer subjects than splits.
    """
    subject_ids = np.asarray(subject_ids, str)
    with_anomaly = np.unique(subject_ids[np.asarray(abnormal, bool)])
    normal = np.setdiff1d(subject_ids, with_anomaly)
    if config.train > 0 and not len(normal):
        raise SplitError(f"no subject without anomaly to train on: all {len(with_anomaly)} subjects have an abnormal sample")
    if len(with_anomaly) and not config.validation + config.test:
        raise SplitError(f"{len(with_anomaly)} subject(s) have an abnormal sample and cannot train; give validation or test a share")
    asked = sum(share > 0 for share in (config.train, config.validation, config.test))
    if len(normal) + len(with_anomaly) < asked:
        raise SplitError(f"{len(normal) + len(with_anomaly)} subject(s) cannot be divided into {asked} splits; each needs one of its own")
    rng = np.random.default_rng(config.seed)
    # by need, for when there are too few: training takes normal subjects alone; a lone abnormal one tests, the second normal one validates
    shares_of_abnormal = {"test": config.test, "validation": config.validation}
    shares_of_normal = {"train": config.train, "validation": config.validation, "test": config.test}
    chosen = dict(zip(rng.permutation(with_anomaly), _deal(len(with_anomaly), shares_of_abnormal), strict=True))
    chosen |= dict(zip(rng.permutation(normal), _deal(len(normal), shares_of_normal), strict=True))
    return np.array([chosen[subject] for subject in subject_ids])


def leaking_subjects(subject_ids: np.ndarray, splits: np.ndarray) -> list[str]:
    """Subjects that are in more than one split, sorted; the empty list proves that none is."""
    pairs = {(str(subject), str(split)) for subject, split in zip(subject_ids, splits, strict=True)}
    subjects, counts = np.unique([subject for subject, _ in pairs], return_counts=True) if pairs else (np.array([]), np.array([]))
    return [str(subject) for subject in subjects[counts > 1]]


def _deal(count: int, shares: dict[str, float]) -> list[str]:
    """Names of splits for `count` subjects by largest remainder, at least one each; of fewer subjects than splits the first get one."""
    total = sum(shares.values())
    wanted = {name: share / total * count for name, share in shares.items() if share > 0}
    if count <= len(wanted):
        return list(wanted)[:count]
    dealt = {name: int(share) for name, share in wanted.items()}
    for name in sorted(wanted, key=lambda name: dealt[name] - wanted[name])[: count - sum(dealt.values())]:
        dealt[name] += 1
    while min(dealt.values()) == 0:
        dealt[max(dealt, key=lambda name: dealt[name])] -= 1
        dealt[next(name for name in dealt if dealt[name] == 0)] += 1
    return [name for name, number in dealt.items() for _ in range(number)]
