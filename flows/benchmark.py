"""Every class in turn normal × seeds × detectors → one table."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import TypeAdapter, ValidationError

from flows.config import ConfigError, RunConfig, load_config, read_yaml
from flows.curate import curate
from flows.score import score
from flows.train import train
from storage import filesystems
from storage.datasets.registry import AnySource
from tasks.benchmark import BenchmarkPlan, BenchmarkReference, Experiment, flatten, keep_test, write_benchmark
from tasks.heartbeats import no_heartbeats

_SOURCE: TypeAdapter[AnySource] = TypeAdapter(AnySource)


@flow(name="benchmark", flow_run_name="benchmark {config.name}")
def benchmark(config: RunConfig, plan: BenchmarkPlan) -> BenchmarkReference:
    """Curate, train and score each class with each seed; the table is written whenever a seed has been through all classes."""
    experiments: list[Experiment] = []
    (key, classes), *_ = plan.classes.items()
    with no_heartbeats():
        for seed in plan.seeds:
            for normal in classes:
                one = configure(config, key=key, normal=normal, seed=seed)
                manifest = curate(one)
                models = train(one, manifest)
                tested = keep_test(manifest, store=one.store)
                experiments.append(Experiment(normal=str(normal), seed=seed, tested=tested, stores=score(one, tested, models)))
            reference: BenchmarkReference = write_benchmark(
                config.name, experiments, bootstrap=plan.bootstrap, store=config.store, execution=config.execution
            )
    create_table_artifact(
        key="benchmark",
        table=flatten(filesystems.read_json(reference["json_uri"])),
        description=f"{config.name}: test splits of {len(experiments)} experiments",
    )
    return reference


def configure(config: RunConfig, *, key: str, normal: Any, seed: int) -> RunConfig:
    """The run of one class and seed.

    Raises:
        ConfigError: the source has no such key, or does not take the value.
    """
    return config.model_copy(
        update={
            "name": f"{config.name} - {normal} normal - seed {seed}",
            "source": (choose_class(config, key=key, normal=normal),),
            "split": config.split.model_copy(update={"seed": seed}),
            "training": config.training.model_copy(update={"seed": seed}),
        }
    )


def choose_class(config: RunConfig, *, key: str, normal: Any) -> AnySource:
    """The run's source with one class normal.

    Raises:
        ConfigError: as of `configure`.
    """
    (source, *others) = config.source
    if others or key not in type(source).model_fields:
        raise ConfigError(f"classes.{key}: a benchmark has one source that has this key; it has {sorted(type(source).model_fields)}")
    try:
        return _SOURCE.validate_python(source.model_dump() | {key: normal})
    except ValidationError as error:
        raise ConfigError(f"classes.{key}: {error.errors()[0]['msg']} (got {normal!r})") from None


def load_benchmark(path: Path) -> tuple[RunConfig, BenchmarkPlan]:
    """Read a benchmark's YAML file and the run's configuration that it names.

    Raises:
        ConfigError: no file, no YAML, an unknown key, a wrong value; in either file.
    """
    plan = read_yaml(path, BenchmarkPlan)
    config = load_config(path.parent / plan.run)
    (key, classes), *_ = plan.classes.items()
    for normal in classes:
        configure(config, key=key, normal=normal, seed=0)
    return config, plan
