"""A paper's tables: curate → every method → score → evaluate → what is published, and ours beside it."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow, tags
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from flows.benchmark import choose_class, load_benchmark
from flows.config import RunConfig, load_config, read_yaml
from flows.curate import curate
from flows.evaluate import measure_model
from flows.miniatures import NOTICE, shrink
from flows.score import score
from storage import filesystems
from storage.datasets.miniatures.papers import write_miniature
from tasks.benchmark import BenchmarkPlan, keep_test
from tasks.derive import derive_model, find_base
from tasks.heartbeats import no_heartbeats
from tasks.progress import show_progress
from tasks.references import ManifestReference, ModelReference
from tasks.report import write_report
from tasks.reproduce import PaperError, PaperPlan, View, check_data, find_detector, find_views
from tasks.reproduce_cells import Cell, Experiment, explain, measure_view
from tasks.reproduce_table import ReproductionReference, write_reproduction
from tasks.search_trials import count_slots, search_execution
from tasks.server import home
from tasks.train import train_detector
from tasks.training_pictures import GENERATED

_CONFIGS = Path(__file__).parents[1] / "deploy" / "configs"
_TABLES = _CONFIGS / "papers" / "tables"
_MNIST = _CONFIGS / "benchmarks" / "mnist-three-seeds.yaml"
_DATA = "../../../data/"  # where the papers' configurations have their data sets

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


@flow(name="reproduce", flow_run_name="reproduce {title}")
def reproduce(title: str, plan: PaperPlan, configs: dict[str, RunConfig], *, miniature: bool, store: str) -> ReproductionReference:
    """Run every experiment of a paper and fill its tables. A cell that fails says why, and the others go on.

    Args:
        title: shown wherever anything of it is.
        plan: of the paper.
        configs: of its runs, as the plan knows them.
        miniature: the data are generated, and everything else is made as small.
        store: where everything is kept.
    """
    experiments = []
    with no_heartbeats(), tags(*([GENERATED] if miniature else [])):
        planned = plan_experiments(plan, configs, miniature=miniature)
        with show_progress(f"reproduce {title}", sum(len(config.detectors) for _, config in planned)) as bar:
            for blank, config in planned:
                experiments.append(_conduct(blank, config, find_views(plan, blank["run"], configs[blank["run"]].detectors)))
                bar.advance(len(config.detectors))
        reference: ReproductionReference = write_reproduction(
            title,
            plan,
            experiments,
            detectors={name: config.detectors for name, config in configs.items()},
            bootstraps={blank["run"]: config.evaluation.bootstrap for blank, config in planned},
            generated=miniature,
            notice=NOTICE if miniature else None,
            store=store,
        )
    markdown = filesystems.read_bytes(reference["markdown_uri"]).decode()
    create_markdown_artifact(key=f"reproduction-{plan.paper}", markdown=markdown, description=title)
    create_link_artifact(
        key=f"reproduction-{plan.paper}-page", link=str(filesystems.as_link(reference["html_uri"])), link_text=f"tables: {title}"
    )
    return reference


@flow(name="train cells", flow_run_name="train the cells of {config.name}")
def train_cells(config: RunConfig, manifest: ManifestReference) -> list[ModelReference | str]:
    """A model of each detector, or the reason why there is none; side by side on workers where there are several.

    A training in several processes has the machine for itself.
    """
    where = search_execution(config.execution) if _trains_beside(config) else None
    training = config.training.model_copy(update={"threads": config.training.threads or where.threads}) if where else config.training
    options: dict[str, Any] = {
        "training": training,
        "calibration": config.calibration,
        "bootstrap": config.evaluation.bootstrap,
        "store": config.store,
    }
    development = manifest["development_uri"], manifest["development_digest"]
    bases = [find_base(config.detectors, position, training) for position in range(len(config.detectors))]
    futures = {
        position: train_detector.submit(*development, detector=config.detectors[position], execution=where, **options)
        for position, base in enumerate(bases)
        if base is None
    }
    models: dict[int, ModelReference | str] = {position: _attempt(future.result) for position, future in futures.items()}
    for position, base in enumerate(bases):
        if base is not None:
            trained = models[base]
            derive = partial(derive_model, trained, *development, detector=config.detectors[position], **options)
            models[position] = trained if isinstance(trained, str) else _attempt(derive)
    return [models[position] for position in range(len(bases))]


def plan_experiments(plan: PaperPlan, configs: dict[str, RunConfig], *, miniature: bool) -> list[tuple[Experiment, RunConfig]]:
    """Every run with every class and seed: an experiment without results, and its configuration. A miniature has fewer seeds."""
    planned = []
    for name, run in plan.runs.items():
        key, values = next(iter(run.classes.items())) if run.classes else ("", (None,))
        seeds = run.seeds[: 1 if run.classes else 2] if miniature else run.seeds
        for normal in values:
            for seed in seeds:
                config = configs[name]
                source = config.source if normal is None else (choose_class(config, key=key, normal=normal),)
                suffix = ("" if normal is None else f" - {normal} normal") + (f" - seed {seed}" if len(seeds) > 1 else "")
                title = f"{'GENERATED miniature - ' if miniature else ''}{config.name}{suffix}"
                training = config.training.model_copy(update={"seed": seed})
                chosen = config.model_copy(update={"name": title, "source": source, "training": training})
                blank = Experiment(
                    run=name,
                    title=title,
                    normal=None if normal is None else str(normal),
                    seed=seed,
                    manifest=None,
                    tested=None,
                    cells=[],
                    report=None,
                    failed=None,
                )
                planned.append((blank, shrink(chosen) if miniature else chosen))
    return planned


def list_papers() -> list[PaperPlan]:
    """All papers that have tables.

    Raises:
        PaperError: the files are not there.
        ConfigError: one is no plan.
    """
    paths = sorted(_TABLES.glob("*.yaml"))
    if not paths:
        raise PaperError(f"there are no papers in {_TABLES}: install normascope from its source tree, with `pip install -e`")
    return [read_yaml(path, PaperPlan) for path in paths]


def find_plan(paper: str) -> PaperPlan:
    """The plan of a paper.

    Raises:
        PaperError, ConfigError: as of `list_papers`; no such paper.
    """
    plans = {plan.paper: plan for plan in list_papers()}
    if paper not in plans:
        raise PaperError(f"there is no paper {paper!r}; expected {', '.join(plans)} or mnist")
    return plans[paper]


def load_paper(paper: str, *, data: str, store: str, execution: Any = None) -> tuple[PaperPlan, dict[str, RunConfig]]:
    """A paper's plan and the configurations of its runs, over the data sets in a folder.

    Args:
        paper: its name.
        data: folder that holds its data sets.
        store: where everything is kept.
        execution: where the heavy work runs; as configured if None.

    Raises:
        PaperError: no such paper; a row of its tables names a detector that the run has not.
        ConfigError: a file is no configuration.
    """
    plan, configs = find_plan(paper), {}
    for name, run in plan.runs.items():
        config = load_config(_TABLES / run.config, change=lambda values: _move(values, data) | {"store": store})
        for key, classes in (run.classes or {}).items():
            for normal in classes:
                choose_class(config, key=key, normal=normal)
        configs[name] = config if execution is None else config.model_copy(update={"execution": execution})
    for table in plan.tables:
        for row in table.rows:
            for of in {row.run or column.run for column in table.columns if not column.missing}:
                if row.detector is not None and of is not None:
                    find_detector(configs[of].detectors, row.detector)
    return plan, configs


def find_data(paper: str, data: str | None, *, miniature: bool) -> str:
    """The folder that holds a paper's data sets: the one that is named, or that of its miniature, which is generated where it lacks.

    Raises:
        PaperError: no such paper; a data set is missing.
        MiniatureError: something else stands where the miniature belongs.
    """
    if miniature:
        find_plan(paper)
        return str(write_miniature(paper, home() / "miniatures" / paper))
    folder = filesystems.absolute(data or "data")
    check_data(find_plan(paper), folder)
    return folder


def load_mnist(*, store: str, execution: Any = None) -> tuple[RunConfig, BenchmarkPlan]:
    """The benchmark of all detectors on real digits, every digit in turn normal, with three seeds."""
    config, plan = load_benchmark(_MNIST)
    return config.model_copy(update={"store": store} | ({"execution": execution} if execution is not None else {})), plan


def _conduct(blank: Experiment, config: RunConfig, views: list[list[View]]) -> Experiment:
    """Curate, train, score, evaluate and report on one experiment; what fails stands in its place."""
    manifest = _attempt(lambda: curate(config))
    if isinstance(manifest, str):
        failed = Cell(model=None, store=None, evaluation=None, views={}, failed=manifest)
        return Experiment(**{**blank, "cells": [failed] * len(config.detectors), "failed": manifest})
    tested = keep_test(manifest, store=config.store)
    slots = count_slots(search_execution(config.execution)) if _trains_beside(config) else 1
    models = train_cells.with_options(task_runner=ThreadPoolTaskRunner(max_workers=slots))(config, manifest)  # type: ignore[arg-type]
    cells = [_measure(config, tested, model, wanted) for model, wanted in zip(models, views, strict=True)]
    done = [cell for cell in cells if cell["failed"] is None]
    report = _attempt(
        lambda: (
            write_report(
                config.name,
                tested,
                [cell["model"] for cell in done],
                [cell["store"] for cell in done],
                [cell["evaluation"] for cell in done],
                notice=config.shown_notice,
                configuration=config.model_dump(mode="json"),
                bootstrap=config.evaluation.bootstrap,
                store=config.store,
            )
            if done
            else None
        )
    )
    conducted = Experiment(**{**blank, "manifest": manifest, "tested": tested, "cells": cells})
    if isinstance(report, str):
        conducted["failed"] = f"no report: {report}"
    else:
        conducted["report"] = report
    return conducted


def _measure(config: RunConfig, tested: ManifestReference, model: ModelReference | str, views: list[View]) -> Cell:
    cell = Cell(model=None, store=None, evaluation=None, views={}, failed=None)
    if isinstance(model, str):
        return Cell(**{**cell, "failed": model})
    stores = _attempt(lambda: score(config, tested, [model]))
    if isinstance(stores, str):
        return Cell(**{**cell, "model": model, "failed": stores})
    (store,) = stores
    evaluation = _attempt(lambda: measure_model(config, store, tested, model))
    if isinstance(evaluation, str):
        return Cell(**{**cell, "model": model, "store": store, "failed": evaluation})
    options: dict[str, Any] = {"bootstrap": config.evaluation.bootstrap, "execution": config.execution, "root": config.store}
    found = {view.key: _attempt(partial(measure_view, store, tested, model, view=view, **options)) for view in views}
    return Cell(model=model, store=store, evaluation=evaluation, views=found, failed=None)


def _attempt(step: Callable[[], Result]) -> Result | str:
    """The step's result, or the reason why it failed for good: retries are the tasks' own."""
    try:
        return step()
    except Exception as error:  # whatever it is, the other cells go on
        logger.warning("a cell failed: %s", explain(error))
        logger.debug("failed", exc_info=True)
        return explain(error)


def _trains_beside(config: RunConfig) -> bool:
    """Whether several workers can train at once."""
    return config.training.processes == 1 and count_slots(search_execution(config.execution)) > 1


def _move(values: Any, data: str) -> Any:
    """The values with every path into the papers' data folder moved into another."""
    if isinstance(values, dict):
        return {key: _move(value, data) for key, value in values.items()}
    if isinstance(values, list):
        return [_move(value, data) for value in values]
    return filesystems.join(data, values.removeprefix(_DATA)) if isinstance(values, str) and values.startswith(_DATA) else values
