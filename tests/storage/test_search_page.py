"""The report of a search: every number on the page, in the JSON and in the CSV; names that are no markup; levels inside the plot."""

import csv
import io
import json
import re
from dataclasses import replace

from storage.reports.figures import StudyLine, draw_study
from storage.reports.search_page import ChoiceRow, SearchReport, Study, TrialRow, render_search, search_as_csv, search_as_json

HOSTILE = '</script><script>alert("x")</script>'


def make_report() -> SearchReport:
    """Three trials, the last of which failed."""
    trials = [
        TrialRow(0, {"d": 1}, {"few anomalies": 0.75, "loss": 0.5}, 0.8125, ["few anomalies"], None),
        TrialRow(1, {"d": 2}, {"few anomalies": 0.5, "loss": 0.25}, 0.6875, ["loss"], None),
        TrialRow(2, {"d": 3}, {}, None, [], "TrainingError: the loss is nan"),
    ]
    choices = [
        ChoiceRow("few anomalies", "highest", 0, 0.75, 1, {"AUROC": (0.8125, 0.75, 0.875)}),
        ChoiceRow("loss", "lowest", 1, 0.25, 1, {"AUROC": (0.6875, None, None)}),
    ]
    line = StudyLine("1 type of anomaly", [2, 5], [0.75, 0.8125], [0.0625, 0.0])
    study = Study(7, [line], [{"types": 1, "count": 2, "mean": 0.75}], best=0.8125, worst=0.6875)
    return SearchReport("Digits: search", "Three configurations.", None, choices, trials, study, {"folds": "3"})


def test_the_page_holds_every_choice_trial_and_figure() -> None:
    html = render_search(make_report())
    assert html.count("<svg") == 2
    assert "[0.750, 0.875]" in html
    assert "TrainingError: the loss is nan" in html
    (numbers,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert json.loads(numbers) == json.loads(search_as_json(make_report()))
    assert render_search(make_report()) == html


def test_without_a_study_there_is_no_figure() -> None:
    html = render_search(replace(make_report(), study=None))
    assert "<svg" not in html
    assert 'href="#study"' not in html


def test_names_are_text_and_never_markup() -> None:
    report = make_report()
    trials = [replace(row, values={HOSTILE: HOSTILE}) for row in report.trials]
    html = render_search(replace(report, title=HOSTILE, lead=HOSTILE, notice=HOSTILE, trials=trials, run={HOSTILE: HOSTILE}))
    assert HOSTILE not in html
    assert len(re.findall("<script", html)) == 1


def test_the_table_has_one_row_a_trial() -> None:
    rows = list(csv.DictReader(io.StringIO(search_as_csv(make_report()))))
    assert [(row["trial"], row["d"], row["few anomalies"], row["test_auroc"], row["chosen_by"]) for row in rows] == [
        ("0", "1", "0.75", "0.8125", "few anomalies"),
        ("1", "2", "0.5", "0.6875", "loss"),
        ("2", "3", "", "", ""),
    ]
    assert rows[2]["failed"] == "TrainingError: the loss is nan"


def test_levels_far_from_the_lines_are_inside_the_plot_and_equal_ones_share_a_name() -> None:
    line = StudyLine("1 type", [2, 5], [0.75, 0.75], [None, None])
    svg = draw_study([line], references={"best": 1.0, "worst": 0.25, "loss": 0.25}, prefix="x")
    assert "worst, loss" in svg
    assert {tick for tick in ("0.2", "0.4", "0.6", "0.8", "1.0") if f">{tick}<" in svg} == {"0.4", "0.6", "0.8", "1.0"}
    assert ">1.1<" not in svg
