"""What became of a search: test metrics of the chosen trials, the study of the number of anomalies, the report and its files.

Only here, and in the scoring before it, is the test split read.
"""

import hashlib
import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import yaml
from typing_extensions import TypedDict

from methods.detectors.registry import NAMES
from methods.evaluation.few_anomalies import StudyPoint, describe_types, study_draws
from methods.evaluation.histograms import count_scores
from methods.evaluation.metrics import roc_auc
from storage import filesystems
from storage.manifest import read_manifest
from storage.reports.figures import StudyLine
from storage.reports.search_page import ChoiceRow, SearchReport, Study, TrialRow, render_search, search_as_csv, search_as_json
from storage.scores import SCORED, open_store
from tasks.caching import cached_task, code_fingerprint
from tasks.references import EvaluationReference, ManifestReference, StoreReference
from tasks.search import (
    CRITERIA,
    Criterion,
    Folds,
    SearchPlan,
    Trial,
    anomaly_types,
    choose_trials,
    draw_few,
    measure_trials,
    place_anomalies,
)

_METRICS = ("AUROC", "average precision")


class SearchReference(TypedDict):
    """The report, its numbers as files, and the winner's configuration as a run's file."""

    html_uri: str
    json_uri: str
    csv_uri: str
    best_uri: str


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
        configuration: of the run; the winner's takes the place of its detector.
        notice: what a reader must know of the data.
        store: where the files go.
    """
    kinds = anomaly_types(folds["anomalies"], by=plan.anomalies.by)
    drawn = draw_few(kinds, plan.anomalies, folds=plan.folds)
    placements = place_anomalies(trials, anomalies=len(kinds))
    values = measure_trials(trials, placements=placements, drawn=drawn.positions.tolist())
    chosen = choose_trials(values)
    (base,) = configuration["detectors"]
    aurocs = {int(number): _test_auroc(found, tested) for number, found in stores.items()}
    report = SearchReport(
        title=f"{name}: search",
        lead=_lead(plan, len(trials), base["kind"], folds, kinds[drawn.positions]),
        notice=notice,
        choices=[_choice(criterion, values, chosen, evaluations) for criterion in CRITERIA],
        trials=[_row(trial, values, chosen, aurocs) for trial in trials],
        study=_study(plan, placements, kinds, aurocs) if plan.study is not None else None,
        run=_describe(plan, base, folds, kinds, tested),
    )
    best = configuration | {"detectors": [trials[chosen["few anomalies"][0]]["detector"]]}
    return _write(report, name, best, store)


def tabulate_search(reference: SearchReference) -> list[dict[str, Any]]:
    """One row a trial, for the UI."""
    return [
        {"trial": row["number"], **row["values"], **row["criteria"], "test AUROC": row["test_auroc"]}
        | {"chosen by": ", ".join(row["chosen_by"]), "failed": row["failed"] or ""}
        for row in filesystems.read_json(reference["json_uri"])["trials"]
    ]


def describe_choices(reference: SearchReference) -> list[str]:
    """What each criterion chose and its test AUROC, a line each."""
    content = filesystems.read_json(reference["json_uri"])
    lines = []
    for row in content["choices"]:
        value, low, high = row["test"]["AUROC"]
        values = ", ".join(f"{name} = {value}" for name, value in content["trials"][row["trial"]]["values"].items())
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        lines.append(f"{row['criterion']:<17} trial {row['trial']}: {values}; test AUROC {value:.3f}{interval}")
    return lines


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
        lines=[_line(types, [point for point in points if point.types == types]) for types in plan.study.types],
        chosen=[vars(point) | {"mean": point.mean, "deviation": point.deviation} for point in points],
        best=float(np.nanmax(tested)),
        worst=float(np.nanmin(tested)),
    )


def _line(types: int, points: list[StudyPoint]) -> StudyLine:
    label = f"{types} {'type' if types == 1 else 'types'} of anomaly"
    points = sorted(points, key=lambda point: point.count)
    return StudyLine(label, [p.count for p in points], [p.mean for p in points], [p.deviation for p in points])


def _lead(plan: SearchPlan, trials: int, kind: str, folds: Folds, drawn: np.ndarray) -> str:
    normal = len(read_manifest(folds["normal"]["uri"], digest=folds["normal"]["digest"]))
    return (
        f"{trials} configurations of the {NAMES[kind]}, compared by {plan.folds}-fold cross-validation over "
        f"groups of {normal} normal samples, and on {len(drawn)} anomalies of the validation split: {describe_types(drawn)}."
    )


def _describe(plan: SearchPlan, base: dict[str, Any], folds: Folds, kinds: np.ndarray, tested: ManifestReference) -> dict[str, str]:
    settings = plan.model_dump(
        mode="json", exclude={"run", "space", "anomalies", "study"} | (set() if plan.method != "grid" else {"trials", "batch"})
    )
    return {
        **{f"space: {name}": str(values) for name, values in plan.model_dump(mode="json")["space"].items()},
        **{name: str(value) for name, value in settings.items()},
        "anomalies": str(plan.anomalies.model_dump(mode="json")),
        "anomalies in validation": describe_types(kinds),
        "study": str(None if plan.study is None else plan.study.model_dump(mode="json")),
        "detector, before the space": str(base),
        **{f"digest of fold {number}": part["digest"] for number, part in enumerate(folds["folds"])},
        "digest of the normal samples": folds["normal"]["digest"],
        "digest of the test split": tested["digest"],
        "code": f"normascope {version('normascope')}, fingerprint {code_fingerprint(__name__)[:16]}",
        "packages": ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "numpy")),
        "python": platform.python_version(),
    }


def _write(report: SearchReport, name: str, best: dict[str, Any], store: str) -> SearchReference:
    contents = {
        "search.html": render_search(report),
        "search.json": search_as_json(report),
        "search.csv": search_as_csv(report),
        "best.yaml": yaml.safe_dump(best, sort_keys=False, allow_unicode=True),
    }
    folder = filesystems.join(
        store, "searches", f"{name}-{hashlib.sha256(contents['search.html'].encode()).hexdigest()[:12]}".replace(" ", "-")
    )
    uris = {file: filesystems.join(folder, file) for file in contents}
    for file, text in contents.items():
        filesystems.write_bytes(uris[file], text.encode())
    return SearchReference(
        html_uri=uris["search.html"], json_uri=uris["search.json"], csv_uri=uris["search.csv"], best_uri=uris["best.yaml"]
    )
