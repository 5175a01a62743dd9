"""What became of a search: test metrics of the chosen trials, the study of the number of anomalies, the report and its files.

Only here, and in the scoring before it, is the test split read.
"""

import platform
import shlex
import textwrap
from importlib.metadata import version
from typing import Any, NotRequired

import numpy as np
import yaml
from typing_extensions import TypedDict

from methods.detectors.registry import NAMES, DetectorConfig
from methods.evaluation.few_anomalies import StudyPoint, describe_types, study_draws
from methods.evaluation.histograms import count_scores
from methods.evaluation.metrics import roc_auc
from methods.training.space import Range, configure
from storage import filesystems
from storage.manifest import read_manifest
from storage.reports.figures import StudyLine
from storage.reports.search_page import (
    ChoiceRow,
    SearchReport,
    Study,
    TrialRow,
    describe_value,
    render_search,
    search_as_csv,
    search_as_json,
    study_as_csv,
)
from storage.scores import SCORED, open_store
from tasks.caching import cached_task, code_fingerprint, digest_of
from tasks.references import EvaluationReference, ManifestReference, StoreReference
from tasks.search import (
    CRITERIA,
    Criterion,
    Folds,
    SearchPlan,
    Trial,
    anomaly_types,
    choose_trials,
    describe_failed,
    draw_few,
    measure_trials,
    place_anomalies,
)
from tasks.yaml_files import without_defaults

_METRICS = ("AUROC", "average precision")


class SearchReference(TypedDict):
    """The report, its numbers as files, and the winner's configuration as a run's file."""

    html_uri: str
    json_uri: str
    csv_uri: str
    best_uri: str
    study_uri: NotRequired[str]


@cached_task(
    name="write search",
    run_name="write search {name}",
    outputs_exist=lambda reference: all(filesystems.exists(uri) for uri in reference.values()),
)
def write_search(
    name: str,
    plan: SearchPlan,
    trials: list[Trial],
    folds: Folds,
    evaluations: dict[str, EvaluationReference],
    stores: dict[str, StoreReference],
    tested: ManifestReference,
    *,
    detector: DetectorConfig,
    configuration: dict[str, Any],
    notice: str | None,
    store: str,
) -> SearchReference:
    """Compare the criteria's choices on the test split, study the number of anomalies where the plan says so, and write the report.

    Args:
        name: of the run.
        plan: of the search.
        trials: with their stored scores.
        folds: what the trials were made on.
        evaluations: of the chosen trials on the test split, by number.
        stores: scores of the test split, by number of the trial; of all that succeeded where there is a study.
        tested: the test split.
        detector: of the run, before the space.
        configuration: of the run, as in a file; the winner's takes the place of its detector.
        notice: what a reader must know of the data.
        store: where the files go.
    """
    kinds = anomaly_types(folds["anomalies"], by=plan.anomalies.by)
    drawn = draw_few(kinds, plan.anomalies)
    placements = place_anomalies(trials, anomalies=len(kinds))
    values = measure_trials(trials, placements=placements, drawn=drawn.positions.tolist())
    chosen = choose_trials(values)
    aurocs = {int(number): _test_auroc(found, tested) for number, found in stores.items()}
    report = SearchReport(
        title=f"{name}: search",
        lead=_lead(plan, len(trials), detector.kind, folds, kinds[drawn.positions]),
        anomalies=describe_types(kinds[drawn.positions]),
        notice=notice,
        choices=[_choice(criterion, values, chosen, evaluations) for criterion in CRITERIA],
        trials=[_row(trial, values, chosen, aurocs) for trial in trials],
        study=_study(plan, placements, kinds, aurocs) if plan.study is not None else None,
        run=_describe(plan, detector, folds, kinds, tested),
    )
    winner = configure(detector, trials[chosen["few anomalies"][0]]["values"])
    return _write(report, name, configuration | {"detectors": [without_defaults(winner)]}, store)


def tabulate_search(reference: SearchReference) -> list[dict[str, Any]]:
    """One row a trial, for the UI."""
    return [
        {"trial": row["number"], **row["values"], **row["criteria"], "test AUROC": row["test_auroc"]}
        | {"chosen by": ", ".join(row["chosen_by"]), "failed": row["failed"] or ""}
        for row in filesystems.read_json(reference["json_uri"])["trials"]
    ]


def describe_search(reference: SearchReference) -> list[str]:
    """For the terminal: the drawn anomalies, what each criterion chose, its ties and test AUROC, what failed, and how to run the winner."""
    content = filesystems.read_json(reference["json_uri"])
    lines = [f"{'anomalies':<17} {content['anomalies']}"]
    for row in content["choices"]:
        value, low, high = row["test"]["AUROC"]
        tie = f" (tied with {row['as_good'] - 1} more)" if row["as_good"] > 1 else ""
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        settings = _describe_settings(content["trials"][row["trial"]]["values"])
        lines.append(f"{row['criterion']:<17} trial {row['trial']}{tie}: {settings}; test AUROC {value:.3f}{interval}")
    lines += [failed] if (failed := describe_failed(content["trials"])) else []
    return [*lines, f"winner:     {_run_line(reference['best_uri'])}"]


def _describe_settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.removeprefix('detector.')} {describe_value(value)}" for name, value in values.items())


def _run_line(best_uri: str) -> str:
    """The command that runs a winner's file; one in an object store must be fetched first."""
    local = filesystems.local_path(best_uri)
    return f"normascope run {shlex.quote(str(local))}" if local is not None else "normascope run best.yaml"


def _test_auroc(store: StoreReference, tested: ManifestReference) -> float:
    rows = read_manifest(tested["uri"], digest=tested["digest"])
    opened = open_store(store["uri"], expected={"manifest_digest": tested["digest"]})
    scored = opened.status() == SCORED
    counts = count_scores(opened.image_scores()[scored], rows["label"].to_numpy(int)[scored], np.zeros(int(scored.sum()), int))
    return float(roc_auc(counts.normal.sum(0), counts.abnormal.sum(0)))


def _choice(
    criterion: Criterion,
    values: dict[Criterion, np.ndarray],
    chosen: dict[Criterion, tuple[int, int]],
    evaluations: dict[str, EvaluationReference],
) -> ChoiceRow:
    trial, as_good = chosen[criterion]
    metrics = filesystems.read_json(evaluations[str(trial)]["uri"])["metrics"]
    test = {row["name"]: (row["value"], row["low"], row["high"]) for row in metrics if row["level"] == "image" and row["name"] in _METRICS}
    return ChoiceRow(criterion, CRITERIA[criterion], trial, float(values[criterion][trial]), as_good, test)


def _row(trial: Trial, values: dict[Criterion, np.ndarray], chosen: dict[Criterion, tuple[int, int]], aurocs: dict[int, float]) -> TrialRow:
    number = trial["number"]
    return TrialRow(
        number=number,
        values=trial["values"],
        criteria={} if trial["failed"] else {criterion: float(found[number]) for criterion, found in values.items()},
        test_auroc=aurocs.get(number),
        chosen_by=[criterion for criterion, (best, _) in chosen.items() if best == number],
        failed=trial["failed"],
    )


def _study(plan: SearchPlan, placements: np.ndarray, kinds: np.ndarray, aurocs: dict[int, float]) -> Study:
    assert plan.study is not None
    tested = np.array([aurocs.get(number, np.nan) for number in range(len(placements))])
    points = study_draws(
        placements, kinds, tested, types=plan.study.types, counts=plan.study.counts, draws=plan.study.draws, seed=plan.study.seed
    )
    return Study(
        draws=plan.study.draws,
        lines=[line for types in plan.study.types if (line := _line(types, [point for point in points if point.types == types])).counts],
        chosen=[vars(point) | {"mean": point.mean, "deviation": point.deviation} for point in points],
        best=float(np.nanmax(tested)),
        worst=float(np.nanmin(tested)),
    )


def _line(types: int, points: list[StudyPoint]) -> StudyLine:
    label = f"{types} {'type' if types == 1 else 'types'} of anomaly"
    points = sorted(points, key=lambda point: point.count)
    return StudyLine(label, [point.count for point in points], [point.values for point in points])


def _lead(plan: SearchPlan, trials: int, kind: str, folds: Folds, drawn: np.ndarray) -> str:
    normal = len(read_manifest(folds["normal"]["uri"], digest=folds["normal"]["digest"]))
    return (
        f"{trials} configurations of the {NAMES[kind]}, compared by {plan.folds}-fold cross-validation over "
        f"groups of {normal} normal samples, and on {len(drawn)} anomalies of the validation split: {describe_types(drawn)}."
    )


def _describe(plan: SearchPlan, base: DetectorConfig, folds: Folds, kinds: np.ndarray, tested: ManifestReference) -> dict[str, str]:
    drawn, study = plan.anomalies, plan.study
    of = describe_value(drawn.findings) if drawn.findings is not None else f"{drawn.types} drawn"
    studied = "none" if study is None else f"{describe_value(study.counts)} anomalies of {describe_value(study.types)} types, "
    return {
        **{f"space: {name}": _describe_choices(values) for name, values in plan.space.items()},
        "method": plan.method + ("" if plan.method == "grid" else f", {plan.trials} trials, suggested {plan.batch} at a time"),
        "seed": str(plan.seed),
        "folds": str(plan.folds),
        "anomalies": f"{drawn.count}; {drawn.by}: {of}; seed {drawn.seed}",
        "anomalies in validation": describe_types(kinds),
        "study": studied + ("" if study is None else f"{study.draws} draws of each, seed {study.seed}"),
        "detector, where it differs from its defaults, before the space": describe_value(without_defaults(base)),
        **{f"digest of fold {number}": part["digest"] for number, part in enumerate(folds["folds"])},
        "digest of the normal samples": folds["normal"]["digest"],
        "digest of the test split": tested["digest"],
        "code": f"normascope {version('normascope')}, fingerprint {code_fingerprint(__name__)[:16]}",
        "packages": ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "numpy")),
        "python": platform.python_version(),
    }


def _describe_choices(values: Range | tuple[Any, ...]) -> str:
    if not isinstance(values, Range):
        return ", ".join(f"({said})" if "," in (said := describe_value(value)) else said for value in values)
    step = "" if values.step is None else f", in steps of {describe_value(values.step)}"
    return f"{describe_value(values.low)} to {describe_value(values.high)}{', logarithmic' if values.log else ''}{step}"


def _write(report: SearchReport, name: str, best: dict[str, Any], store: str) -> SearchReference:
    numbers = search_as_json(report)
    digest = digest_of(numbers, report.notice, best)[:12]
    folder = filesystems.join(store, "searches", f"{name}-{digest}".replace(" ", "-"))
    command = _run_line(filesystems.join(folder, "best.yaml"))
    contents = {"best.yaml": _head(report, command) + yaml.safe_dump(best, sort_keys=False, allow_unicode=True)}
    contents |= {"search.json": numbers, "search.csv": search_as_csv(report)}
    if report.study is not None:
        contents["study.csv"] = study_as_csv(report.study)
    contents["search.html"] = render_search(report, command=command, files=list(contents))
    uris = {file: filesystems.join(folder, file) for file in contents}
    for file, text in contents.items():
        filesystems.write_bytes(uris[file], text.encode())
    reference = SearchReference(
        html_uri=uris["search.html"], json_uri=uris["search.json"], csv_uri=uris["search.csv"], best_uri=uris["best.yaml"]
    )
    if report.study is not None:
        reference["study_uri"] = uris["study.csv"]
    return reference


def _head(report: SearchReport, command: str) -> str:
    """The comment that a winner's file begins with."""
    row = next(choice for choice in report.choices if choice.criterion == "few anomalies")
    tie = f", tied with {row.as_good - 1} more" if row.as_good > 1 else ""
    settings = _describe_settings(report.trials[row.trial].values)
    said = [
        f"{report.title}. {report.lead}",
        f"Chosen by {row.criterion} ({row.rule}): trial {row.trial}, {settings}; value {row.value:.4g}{tie}.",
        "The epoch is chosen by the loss on normal images, as it was there. Keys that are not here have their defaults.",
    ]
    lines = [line for text in said for line in textwrap.wrap(" ".join(text.split()), 118)]
    return "".join(f"# {line}\n" for line in [*lines, command])
