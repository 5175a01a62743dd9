"""The report of a search as one HTML file, as JSON and as CSV. Plain data in, text out; nothing is computed here."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from storage.reports import figures


@dataclass(frozen=True)
class TrialRow:
    """One configuration: its hyperparameters, what each criterion says of it, its AUROC on the test split where it was trained for it.

    Attributes:
        criteria: criterion -> value; empty where the trial failed, and `failed` says why.
        chosen_by: the criteria that chose it.
    """

    number: int
    values: dict[str, Any]
    criteria: dict[str, float]
    test_auroc: float | None
    chosen_by: list[str]
    failed: str | None


@dataclass(frozen=True)
class ChoiceRow:
    """What a criterion chose.

    Attributes:
        rule: of the criterion, in words.
        trial: number of the chosen one.
        value: of the criterion.
        as_good: trials of that value, the chosen one included.
        test: metric -> value, low, high on the test split; low and high None without an interval.
    """

    criterion: str
    rule: str
    trial: int
    value: float
    as_good: int
    test: dict[str, tuple[float, float | None, float | None]]


@dataclass(frozen=True)
class Study:
    """Test AUROC by number of anomalies and of types.

    Attributes:
        draws: of each point.
        chosen: one entry a point: types, count, chosen (trials), values (their test AUROC), mean, deviation.
        best, worst: of all trials' test AUROC.
    """

    draws: int
    lines: list[figures.StudyLine]
    chosen: list[dict[str, Any]]
    best: float
    worst: float


@dataclass(frozen=True)
class SearchReport:
    """All that the report of a search shows.

    Attributes:
        anomalies: the drawn ones, how many of which type, in words.
    """

    title: str
    lead: str
    anomalies: str
    notice: str | None
    choices: list[ChoiceRow]
    trials: list[TrialRow]
    study: Study | None
    run: dict[str, str] = field(default_factory=dict)


def render_search(report: SearchReport, *, command: str, files: Sequence[str]) -> str:
    """The report as one HTML page with its style and figures inside; the same report gives the same text.

    Args:
        report: what it shows.
        command: that runs the winner.
        files: beside the page, the winner's configuration first.
    """
    room = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(room), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"sig": lambda value: f"{value:.4g}", "words": describe_value, "label": _break_name}
    return environment.get_template("search.html.j2").render(
        report=report,
        css=Markup((room / "report.css").read_text("utf-8")),
        data=Markup(search_as_json(report).replace("<", "\\u003c")),  # a name must not close the script element
        command=command,
        files=files,
        study=_draw_study(report),
        tabulated=_tabulate_study(report.study),
        against_test=_draw_criteria(report),
    )


def search_as_json(report: SearchReport) -> str:
    """All numbers of the report, keys sorted."""
    study = report.study
    numbers = {
        "title": report.title,
        "lead": report.lead,
        "anomalies": report.anomalies,
        "choices": [vars(row) for row in report.choices],
        "trials": [vars(row) for row in report.trials],
        "study": None if study is None else vars(study) | {"lines": [vars(line) for line in study.lines]},
        "run": report.run,
    }
    return json.dumps(numbers, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def search_as_csv(report: SearchReport) -> str:
    """One row a trial: number, hyperparameters, criteria, test_auroc, chosen_by, failed."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names, criteria = list(report.trials[0].values), [row.criterion for row in report.choices]
    table.writerow(["trial", *names, *criteria, "test_auroc", "chosen_by", "failed"])
    for row in report.trials:
        found = [row.criteria.get(criterion) for criterion in criteria]
        table.writerow([row.number, *row.values.values(), *found, row.test_auroc, ", ".join(row.chosen_by), row.failed])
    return text.getvalue()


def study_as_csv(study: Study) -> str:
    """One row a number of types and of anomalies: over the draws mean, sd, lowest, highest; best and worst possible; each draw's trial."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["types", "anomalies", "draws", "mean", "sd", "lowest", "highest", "best", "worst", "trials"])
    for point in study.chosen:
        spread = [point["mean"], point["deviation"], min(point["values"]), max(point["values"])]
        trials = " ".join(str(trial) for trial in point["chosen"])
        table.writerow([point["types"], point["count"], study.draws, *spread, study.best, study.worst, trials])
    return text.getvalue()


def describe_value(value: Any) -> str:
    """A setting in words: numbers to four digits, lists and parts without their brackets where one can do without."""
    return _describe(value, inside=False)


def _describe(value: Any, *, inside: bool) -> str:
    if value is None or value in ([], (), {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        parts = [f"{name} {_describe(one, inside=True)}" for name, one in value.items() if one is not None]
    elif isinstance(value, list | tuple):
        parts = [_describe(one, inside=True) for one in value]
    else:
        return f"{value[:8]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else str(value)  # a digest
    return f"({', '.join(parts)})" if inside and len(parts) > 1 else ", ".join(parts)


def _break_name(name: str) -> Markup:
    """A hyperparameter's dotted name, which may be broken behind its dots and underscores."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(name.removeprefix("detector.")))))


def _tabulate_study(study: Study | None) -> dict[str, Any]:
    """Columns by number of types, rows by number of anomalies."""
    points = {(point["types"], point["count"]): point for point in (study.chosen if study is not None else ())}
    types, counts = (list(dict.fromkeys(key[place] for key in points)) for place in (0, 1))
    return {"types": types, "rows": [(count, [points.get((one, count)) for one in types]) for count in sorted(counts)]}


def _draw_study(report: SearchReport) -> Markup | None:
    if report.study is None:
        return None
    references = {"best": report.study.best, "worst": report.study.worst}
    others = {row.criterion: row.test["AUROC"][0] for row in report.choices if row.criterion != "few anomalies"}
    return Markup(figures.draw_study(report.study.lines, references=references | others, prefix="study"))


def _draw_criteria(report: SearchReport) -> Markup | None:
    tested = [row for row in report.trials if row.test_auroc is not None]
    if report.study is None or len(tested) < 2:
        return None
    numbers = [row.number for row in tested]
    panels = {
        row.criterion: (np.array([one.criteria[row.criterion] for one in tested]), numbers.index(row.trial)) for row in report.choices
    }
    return Markup(figures.draw_criteria(panels, np.array([row.test_auroc for row in tested]), prefix="criteria"))
