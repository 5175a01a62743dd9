"""A search's plan, what it is made on, and what became of its trials: no task in here sees a row of the test split."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from methods.curation.folds import fold_groups
from methods.detectors.networks.weights import architecture_only
from methods.detectors.registry import NAMES, DetectorConfig, build_detector, learns_from_labels
from methods.evaluation.few_anomalies import Draw, TooFewAnomaliesError, choose, draw_of, draw_types, place
from methods.training.space import Range
from methods.training.suggestions import Method
from storage import filesystems
from storage.manifest import read_manifest, write_named
from tasks.caching import cached_task
from tasks.search_fold import FoldScores, Part

TypeColumn = Literal["finding", "subject_id", "lesion_id", "slide_id"]
Criterion = Literal["few anomalies", "pseudo-anomalies", "loss"]
CRITERIA: dict[Criterion, str] = {
    "few anomalies": "highest AUROC against the drawn anomalies, mean over the folds",
    "pseudo-anomalies": "highest AUROC against patches pasted into the normal images, mean over the folds; needs no anomaly",
    "loss": "lowest loss on normal images (their score where the detector has no loss), mean over the folds; needs no anomaly",
}


class SearchError(ValueError):
    """A search that cannot be made on these data; the message says what is missing."""


class AnomaliesConfig(BaseModel):
    """The few anomalies that decide: how many of which types, drawn from the validation split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(default=20, ge=1, description="anomalies in all")
    findings: tuple[str, ...] | None = Field(default=None, min_length=1, description="the types to draw of; null: `types` of them, drawn")
    types: int = Field(default=1, ge=1, description="how many types are drawn where none are named")
    by: TypeColumn = Field(default="finding", description="column of the manifest that says of which type an anomaly is")
    seed: int = Field(default=0, ge=0, description="of the draw")

    @model_validator(mode="after")
    def _named_or_drawn(self) -> "AnomaliesConfig":
        if self.findings is not None and "types" in self.model_fields_set and self.types != len(self.findings):
            raise ValueError("name the types (findings) or say how many are drawn (types), not both")
        return self


class StudyConfig(BaseModel):
    """How well the choice does with how many anomalies of how many types (the fifth paper's figure 4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    counts: tuple[int, ...] = Field(default=(5, 10, 20), min_length=1, description="numbers of anomalies")
    types: tuple[int, ...] = Field(default=(1, 2, 4), min_length=1, description="numbers of types that they are of")
    draws: int = Field(default=7, ge=2, description="of each number of anomalies and types")
    seed: int = Field(default=0, ge=0, description="of the draws")


class SearchPlan(BaseModel):
    """What is searched, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(description="file with the run's configuration, whose one detector is varied; relative to this one")
    space: dict[str, Range | tuple[Any, ...]] = Field(
        description="by dotted name of the detector's hyperparameters: a list of values, or for Optuna a range {low, high, log, step}"
    )
    method: Method = Field(default="grid", description="grid: all combinations; tpe, random: Optuna's samplers")
    trials: int = Field(default=20, ge=1, description="that Optuna suggests; a grid makes all of its own")
    batch: int = Field(
        default=2, ge=1, description="trials that Optuna suggests before it learns of them; with the seed it decides which there are"
    )
    seed: int = Field(default=0, ge=0, description="of the folds, the pseudo-anomalies and Optuna")
    folds: int = Field(default=3, ge=2, description="of the cross-validation over groups")
    anomalies: AnomaliesConfig = AnomaliesConfig()
    study: StudyConfig | None = Field(default=None, description="train every trial on the whole split and study the number of anomalies")

    @model_validator(mode="after")
    def _has_an_anomaly_for_each_fold(self) -> "SearchPlan":
        fewer = "fewer anomalies than folds"
        if self.anomalies.count < self.folds:
            raise ValueError(f"{fewer}: {self.anomalies.count} for {self.folds} folds; raise anomalies.count or lower folds")
        if self.study is not None and (least := min(self.study.counts)) < self.folds:
            raise ValueError(f"{fewer}: study.counts begins at {least}, with {self.folds} folds; leave it out or lower folds")
        return self


class Folds(TypedDict):
    """Manifests made of the development manifest: of each fold's normal samples, of all of them, and of the anomalies."""

    folds: list[Part]
    normal: Part
    anomalies: Part


class Trial(TypedDict):
    """One configuration, and the scores of each fold's model, or why it has none."""

    number: int
    values: dict[str, Any]
    detector: dict[str, Any]
    folds: list[FoldScores]
    failed: str | None


@cached_task(
    name="deal folds",
    run_name="deal {folds} folds",
    outputs_exist=lambda dealt: all(filesystems.exists(part["uri"]) for part in (*dealt["folds"], dealt["normal"], dealt["anomalies"])),
)
def deal_folds(development: Part, *, folds: int, seed: int, store: str) -> Folds:
    """Write the manifests that trials see: k times training and validation out of the normal samples of the development manifest.

    No group is in two folds. Normal samples of a group with an anomaly are validated on, but never trained on.

    Args:
        development: the manifest without the test split.
        folds: k.
        seed: of the deal.
        store: where the manifests go.

    Raises:
        SearchError: fewer groups than folds, or no anomaly in the validation split.
    """
    rows = read_manifest(development["uri"], digest=development["digest"])
    check_development(rows)
    rows = rows[rows["label"].notna() & rows["split"].isin(["train", "validation"]) & rows["excluded"].isna()].reset_index(drop=True)
    abnormal = (rows["label"] == 1).to_numpy(bool)
    normal = rows[~abnormal]
    touched = normal["group_id"].isin(rows["group_id"][abnormal])  # by an anomaly: a person who has one
    groups = normal["group_id"][~touched].nunique()
    if groups < folds:
        raise SearchError(f"fewer groups than folds: {groups} group(s) of normal samples without anomaly, {folds} folds; lower `folds`")
    fold = fold_groups(normal["group_id"], normal["dataset"] + touched.map({True: " touched", False: ""}), k=folds, seed=seed)
    if (least := np.bincount(fold, minlength=folds).min()) < 2:
        raise SearchError(f"a fold of {least} normal sample has no AUROC to speak of; lower `folds`, which is {folds}")
    uris: dict[str, tuple[str, str]] = {}
    folder = filesystems.join(store, "search", "manifests")
    for number in range(folds):
        part = normal.assign(split=np.where(fold == number, "validation", "train"))[(fold == number) | ~touched.to_numpy(bool)]
        uris |= write_named(folder, part, **{f"fold-{number}": slice(None)})
    chosen = rows[abnormal & (rows["split"] == "validation")]
    if not len(chosen):
        raise SearchError("the validation split has no anomaly to choose by; give it some, or choose hyperparameters another way")
    uris |= write_named(folder, normal, normal=slice(None)) | write_named(folder, chosen, anomalies=slice(None))
    parts = {name: Part(uri=uri, digest=digest) for name, (uri, digest) in uris.items()}
    return Folds(folds=[parts[f"fold-{number}"] for number in range(folds)], normal=parts["normal"], anomalies=parts["anomalies"])


def check_development(rows: pd.DataFrame) -> None:
    """Refuse a manifest that holds rows of the test split.

    Raises:
        SearchError: how many there are.
    """
    if count := int((rows["split"] == "test").sum()):
        raise SearchError(f"a search takes the development manifest, and this one has {count} rows of the test split")


def check_detector(config: DetectorConfig) -> None:
    """Refuse a detector that cannot learn from normal samples alone, or cannot be built; no weights are read or downloaded.

    Raises:
        SearchError: it learns from labels.
        DetectorError: the configuration cannot be built.
    """
    if learns_from_labels(config):
        raise SearchError(f"{NAMES[config.kind]} learns from labels: few anomalies cannot be kept for its choice alone")
    with architecture_only():
        build_detector(config)


def anomaly_types(anomalies: Part, *, by: TypeColumn) -> np.ndarray:
    """The type (m,) str of each anomaly; "none" where the manifest does not say."""
    return read_manifest(anomalies["uri"], digest=anomalies["digest"])[by].fillna("none").to_numpy(str)


def draw_few(kinds: np.ndarray, config: AnomaliesConfig) -> Draw:
    """The few anomalies of a search.

    Raises:
        SearchError: fewer anomalies than asked for, or a type that there is not.
    """
    rng = np.random.default_rng((config.seed, config.count))
    try:
        types = config.findings or draw_types(kinds, types=config.types, count=config.count, rng=rng)
        return draw_of(kinds, types=types, count=config.count, rng=rng)
    except TooFewAnomaliesError as error:
        raise SearchError(f"anomalies ({config.by}): {error}") from None


def check_study(kinds: np.ndarray, study: StudyConfig) -> None:
    """Refuse a study that asks for more anomalies or types than there are, before anything is trained.

    Raises:
        SearchError: names what is too many.
    """
    for types in study.types:
        for count in (count for count in study.counts if count >= types):
            try:
                draw_types(kinds, types=types, count=count, rng=np.random.default_rng(0))
            except TooFewAnomaliesError as error:
                raise SearchError(f"study: {error}") from None


def describe_failed(trials: Sequence[Mapping[str, Any]]) -> str | None:
    """How many of the trials failed, which, and why, each reason once; None where none did."""
    reasons: dict[str, list[str]] = {}
    for trial in trials:
        if trial["failed"] is not None:
            reasons.setdefault(trial["failed"], []).append(str(trial["number"]))
    if not reasons:
        return None
    said = "; ".join(f"{'trial' if len(which) == 1 else 'trials'} {', '.join(which)}: {reason}" for reason, which in reasons.items())
    return f"{sum(map(len, reasons.values()))} of {len(trials)} {'trial' if len(trials) == 1 else 'trials'} failed: {said}"


def place_anomalies(trials: list[Trial], *, anomalies: int) -> np.ndarray:
    """Placements (T, m) of all m anomalies under every trial, averaged over its folds; NaN where the trial failed."""
    placements = np.full((len(trials), anomalies), np.nan)
    for number, trial in enumerate(trials):
        if trial["failed"] is None:
            placements[number] = np.mean([place(fold["normal"], fold["anomalies"]) for fold in map(read_scores, trial["folds"])], 0)
    return placements


def measure_trials(trials: list[Trial], *, placements: np.ndarray, drawn: list[int]) -> dict[Criterion, np.ndarray]:
    """Each criterion's value (T,) of every trial, NaN where the trial failed; of the loss lower is better, of the others higher.

    Args:
        trials: T, with their stored scores.
        placements: (T, m) of `place_anomalies`.
        drawn: positions of the few anomalies among the m.
    """
    pseudo, loss = np.full((2, len(trials)), np.nan)
    for number, trial in enumerate(trials):
        if trial["failed"] is None:
            folds = [read_scores(fold) for fold in trial["folds"]]
            pseudo[number] = np.mean([place(fold["normal"], fold["pseudo"]).mean() for fold in folds])
            loss[number] = np.mean([fold["loss"] for fold in folds])
    return {"few anomalies": placements[:, drawn].mean(1), "pseudo-anomalies": pseudo, "loss": loss}


def read_scores(fold: FoldScores) -> dict[str, Any]:
    """Scores of a trial on a fold: normal (n,), pseudo (n,) and anomalies (m,) as arrays, and loss, loss_is, best_epoch."""
    content = filesystems.read_json(fold["uri"])
    return content | {name: np.array(content[name]) for name in ("normal", "pseudo", "anomalies")}


def check_trials(trials: list[Trial]) -> None:
    """Refuse trials of which none succeeded.

    Raises:
        SearchError: says why.
    """
    if all(trial["failed"] is not None for trial in trials):
        raise SearchError(f"there is nothing to choose from: {describe_failed(trials)}")


def choose_trials(values: dict[Criterion, np.ndarray]) -> dict[Criterion, tuple[int, int]]:
    """The trial that each criterion chooses, and how many are as good by it; the first of equally good ones is chosen.

    Raises:
        SearchError: every trial failed.
    """
    try:
        return {criterion: choose(-found if criterion == "loss" else found) for criterion, found in values.items()}
    except ValueError as error:
        raise SearchError(str(error)) from None
