"""The report of a search as one HTML file, as JSON and as CSV. Plain data in, text out; nothing is computed here."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

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
        chosen: one entry a point: types, count, chosen (trials), values (their test AUROC).
        best, worst: of all trials' test AUROC.
    """

    draws: int
    lines: list[figures.StudyLine]
    chosen: list[dict[str, Any]]
    best: float
    worst: float


@dataclass(frozen=True)
class SearchReport:
    """All that the report of a search shows."""

    title: str
    lead: str
    notice: str | None
    choices: list[ChoiceRow]
    trials: list[TrialRow]
    study: Study | None
    run: dict[str, str] = field(default_factory=dict)


def render_search(report: SearchReport) -> str:
    """The report as one HTML page with its style and figures inside; the same report gives the same text."""
    room = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(room), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["sig"] = lambda value: f"{value:.4g}"
    return environment.get_template("search.html.j2").render(
        report=report,
        css=Markup((room / "report.css").read_text("utf-8")),
        data=Markup(search_as_json(report).replace("<", "\\u003c")),  # a name must not close the script element
        study=_draw_study(report),
        against_test=_draw_criteria(report),
    )


def search_as_json(report: SearchReport) -> str:
    """All numbers of the report, keys sorted."""
    study = report.study
    numbers = {
        "title": report.title,
        "lead": report.lead,
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
