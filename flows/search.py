"""Hyperparameters by cross-validation and few anomalies: trials → choices → the chosen ones on the test split."""

from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner
from typing_extensions import TypedDict

from flows.config import ConfigError, RunConfig, find_weights, load_config, read_yaml
from flows.curate import curate
from flows.evaluate import measure_model
from flows.score import score
from flows.train import train
from methods.detectors.interface import DetectorError
from methods.training.space import SpaceError, configure
from methods.training.suggestions import Suggestions, suggest
from storage import filesystems
from tasks.benchmark import keep_test
from tasks.heartbeats import no_heartbeats
from tasks.progress import Bar, show_progress
from tasks.references import ManifestReference, ModelReference
from tasks.search import (
    Folds,
    SearchError,
    SearchPlan,
    Trial,
    anomaly_types,
    check_detector,
    check_study,
    check_trials,
    choose_trials,
    deal_folds,
    draw_few,
    measure_trials,
    place_anomalies,
)
from tasks.search_fold import FoldJob, Part
from tasks.search_report import SearchReference, tabulate_search, write_search
from tasks.search_trials import count_slots, score_fold, search_execution, trial_training, winner_training
from tasks.yaml_files import without_defaults


class Selected(TypedDict):
    """What a search knows before the test split is looked at: its trials, the chosen ones first to last, and models by trial."""

    folds: Folds
    trials: list[Trial]
    chosen: list[int]
    models: dict[str, ModelReference]


@flow(name="search", flow_run_name="search {config.name}")
def search(config: RunConfig, plan: SearchPlan) -> SearchReference:
    """Curate, select on the development manifest, then score and compare the chosen trials on the test split."""
    with no_heartbeats():
        manifest = curate(config)
        selected = select(config, plan, Part(uri=manifest["development_uri"], digest=manifest["development_digest"]))
        tested = keep_test(manifest, store=config.store)
        numbers, models = list(selected["models"]), list(selected["models"].values())
        stores = dict(zip(numbers, score(config, tested, models), strict=True))
        evaluations = {
            str(number): measure_model(config, stores[str(number)], tested, selected["models"][str(number)])
            for number in selected["chosen"]
        }
        reference: SearchReference = write_search(
            config.name,
            plan,
            selected["trials"],
            selected["folds"],
            evaluations,
            stores,
            tested,
            detector=config.detectors[0],
            configuration=without_defaults(config.model_copy(update={"training": winner_training(config.training)})),
            notice=config.shown_notice,
            store=config.store,
        )
    create_table_artifact(key="search-trials", table=tabulate_search(reference), description=f"{config.name}: trials")
    create_link_artifact(key="search-report", link=str(filesystems.as_link(reference["html_uri"])), link_text="HTML report of the search")
    return reference


@flow(name="select", flow_run_name="select {config.name}")
def select(config: RunConfig, plan: SearchPlan, development: Part) -> Selected:
    """Try all trials on folds of the development manifest, choose by each criterion, train what was chosen; with a study train all.

    It is given no more than the development manifest, which has no row of the test split; the trainings are given its normal samples.
    """
    folds: Folds = deal_folds(development, folds=plan.folds, seed=plan.seed, store=config.store)
    kinds = anomaly_types(folds["anomalies"], by=plan.anomalies.by)
    drawn = draw_few(kinds, plan.anomalies).positions.tolist()
    if plan.study is not None:
        check_study(kinds, plan.study)
    slots = count_slots(search_execution(config.execution))
    at_once = try_trials.with_options(task_runner=ThreadPoolTaskRunner(max_workers=slots))  # type: ignore[arg-type]
    trials = at_once(config, plan, folds, drawn, len(kinds))
    check_trials(trials)
    values = measure_trials(trials, placements=place_anomalies(trials, anomalies=len(kinds)), drawn=drawn)
    chosen = sorted({trial for trial, _ in choose_trials(values).values()})
    trained = [trial["number"] for trial in trials if trial["failed"] is None] if plan.study is not None else chosen
    detectors = tuple(configure(config.detectors[0], trials[number]["values"]) for number in trained)
    whole = config.model_copy(update={"detectors": detectors, "training": winner_training(config.training)})
    models = train(whole, _as_manifest(folds["normal"]))
    return Selected(folds=folds, trials=trials, chosen=chosen, models=dict(zip(map(str, trained), models, strict=True)))


@flow(name="trials", flow_run_name="trials of {config.name}")
def try_trials(config: RunConfig, plan: SearchPlan, folds: Folds, drawn: list[int], anomalies: int) -> list[Trial]:
    """Train and score every trial on every fold, side by side; Optuna is told in the order of trials, whatever order they end in."""
    suggestions, trials = suggest_trials(config, plan), list[Trial]()
    while asked := suggestions.ask():
        with show_progress(f"trials {len(trials)} to {len(trials) + len(asked) - 1}", len(asked) * plan.folds) as bar:
            batch = _try_batch(config, plan, folds, asked, before=trials, bar=bar)
        placements = place_anomalies(batch, anomalies=anomalies)
        qualities = measure_trials(batch, placements=placements, drawn=drawn)["few anomalies"].tolist()
        suggestions.tell([None if trial["failed"] else quality for trial, quality in zip(batch, qualities, strict=True)])
        trials += batch
    return trials


def suggest_trials(config: RunConfig, plan: SearchPlan) -> Suggestions:
    """The trials of a plan.

    Raises:
        SpaceError: no space of the run's detector.
    """
    return suggest(config.detectors[0], plan.space, method=plan.method, trials=plan.trials, batch=plan.batch, seed=plan.seed)


def load_search(path: Path, *, study: bool = False) -> tuple[RunConfig, SearchPlan]:
    """Read a search's YAML file and the run's configuration that it names, and check all that can be known before curation.

    Args:
        path: of the search's file.
        study: whether to study the number of anomalies, by defaults, where the file does not say how.

    Raises:
        ConfigError: no file, no YAML, an unknown key, a wrong value, in either file; a detector that learns from labels; a space that is
            none of the run's detector, layers that a backbone does not have among its values.
    """
    plan = read_yaml(path, SearchPlan, prepare=partial(_prepare, folder=path.parent, study=study))
    config = load_config(path.parent / plan.run)
    if len(config.detectors) != 1:
        raise ConfigError(f"{path.parent / plan.run}: a search varies one detector, and `detectors` has {len(config.detectors)}")
    try:
        check_detector(config.detectors[0])
        suggest_trials(config, plan)
    except (SearchError, DetectorError, SpaceError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return config, plan


def _prepare(values: dict[str, Any], *, folder: Path, study: bool) -> dict[str, Any]:
    """The file's keys with the study that was asked for, and weight files that are beside it."""
    prepared = {**values, "study": values.get("study") or ({} if study else None)}
    if isinstance(space := values.get("space"), dict):
        prepared["space"] = {name: _find_choices(folder, name, choices) for name, choices in space.items()}
    return prepared


def _find_choices(folder: Path, name: str, choices: Any) -> Any:
    if not isinstance(choices, list):
        return choices
    if name.endswith(".weights"):
        return [find_weights(folder, {"weights": choice})["weights"] for choice in choices]
    return [find_weights(folder, choice) for choice in choices]


def _try_batch(
    config: RunConfig, plan: SearchPlan, folds: Folds, asked: list[dict[str, Any]], *, before: list[Trial], bar: Bar
) -> list[Trial]:
    execution = search_execution(config.execution)
    trials, waiting = [], []
    for number, values in enumerate(asked, len(before)):
        trial = Trial(number=number, values=values, detector={}, folds=[], failed=None)
        try:
            detector = configure(config.detectors[0], values)
        except SpaceError as error:  # of values that are allowed one by one
            trial["failed"] = str(error)
            bar.advance(plan.folds)
        else:
            trial["detector"] = detector.model_dump(mode="json")
            equal = next((one for one in before if one["failed"] is not None and one["detector"] == trial["detector"]), None)
            if equal is not None:  # what failed in this search is not tried in it again
                trial["failed"] = equal["failed"]
                bar.advance(plan.folds)
                trials.append(trial)
                continue
            jobs = [
                FoldJob(
                    fold=fold,
                    anomalies=folds["anomalies"],
                    detector=detector,
                    training=trial_training(config.training, execution),
                    seed=plan.seed,
                    store=config.store,
                )
                for fold in folds["folds"]
            ]
            waiting += [(trial, score_fold.submit(job, trial=number, number=k, execution=execution)) for k, job in enumerate(jobs)]
        trials.append(trial)
    for future in as_completed([future for _, future in waiting]):
        future.result()
        bar.advance()
    for trial, future in waiting:
        trial["folds"].append(future.result())
        trial["failed"] = trial["failed"] or trial["folds"][-1]["failed"]
    return trials


def _as_manifest(part: Part) -> ManifestReference:
    """A manifest of which all is for training: what it is made from is not told."""
    return ManifestReference(uri=part["uri"], digest=part["digest"], rows=0, development_uri=part["uri"], development_digest=part["digest"])
