"""The report of a search: every number on the page, in the JSON and in the CSV; names that are no markup; levels inside the plot."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from storage.reports.figures import StudyLine, draw_study
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
from tests.browsers import BROWSER_TEST, open_browser

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
    line = StudyLine("1 type of anomaly", [2, 5], [(0.6875, 0.8125), (0.8125, 0.8125)])
    points = [
        {"types": 1, "count": 2, "chosen": (1, 0), "values": (0.6875, 0.8125), "mean": 0.75, "deviation": 0.0884},
        {"types": 1, "count": 5, "chosen": (0, 0), "values": (0.8125, 0.8125), "mean": 0.8125, "deviation": 0.0},
        {"types": 2, "count": 5, "chosen": (1, 1), "values": (0.6875, 0.6875), "mean": 0.6875, "deviation": 0.0},
    ]
    study = Study(2, [line], points, best=0.8125, worst=0.6875)
    return SearchReport("Digits: search", "Three configurations.", "5 of '8'", None, choices, trials, study, {"folds": "3"})


def render(report: SearchReport) -> str:
    return render_search(report, command="normascope run /there/best.yaml", files=["best.yaml", "search.json", "search.csv"])


def test_the_page_holds_every_choice_trial_and_figure() -> None:
    html = render(make_report())
    assert html.count("<svg") == 2
    assert "[0.750, 0.875]" in html
    assert "TrainingError: the loss is nan" in html
    (numbers,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert json.loads(numbers) == json.loads(search_as_json(make_report()))
    assert render(make_report()) == html


def test_without_a_study_there_is_no_figure() -> None:
    html = render(replace(make_report(), study=None))
    assert "<svg" not in html
    assert 'href="#study"' not in html


def test_names_are_text_and_never_markup() -> None:
    report = make_report()
    trials = [replace(row, values={HOSTILE: HOSTILE}) for row in report.trials]
    html = render(replace(report, title=HOSTILE, lead=HOSTILE, notice=HOSTILE, trials=trials, run={HOSTILE: HOSTILE}))
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


def test_the_study_is_a_table_on_the_page_and_in_a_file() -> None:
    html = re.sub("<[^>]*>", " ", render(make_report()))
    for said in (
        r"2\s+0\.750\s+± 0\.088\s+0\.688 to 0\.812",
        r"5\s+0\.812\s+± 0\.000\s+0\.812 to 0\.812\s+0\.688",
        "has 0.812, the worst 0.688",
    ):
        assert re.search(said, html)
    study = make_report().study
    assert study is not None
    rows = list(csv.DictReader(io.StringIO(study_as_csv(study))))
    assert [(row["types"], row["anomalies"], row["trials"]) for row in rows] == [("1", "2", "1 0"), ("1", "5", "0 0"), ("2", "5", "1 1")]
    assert [float(rows[0][name]) for name in ("mean", "sd", "lowest", "highest", "best", "worst")] == [
        0.75,
        0.0884,
        0.6875,
        0.8125,
        0.8125,
        0.6875,
    ]


def test_the_winner_is_linked_and_its_command_shown() -> None:
    html = render(make_report())
    assert '<a href="best.yaml">' in html
    assert "normascope run /there/best.yaml" in html
    assert "1 of 3 trials failed" in html


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.007232371232294039, "0.007232"),
        (1e-05, "1e-05"),
        (64, "64"),
        (True, "yes"),
        (None, "none"),
        (["block4"], "block4"),
        ([64, 128], "64, 128"),
        ([[64, 128], [256]], "(64, 128), 256"),
        ({"name": "timm/x", "layers": ["a", "b"], "weights": None}, "name timm/x, layers (a, b)"),
        ({"weights_sha256": "0" * 64}, "weights_sha256 00000000…"),
    ],
)
def test_a_setting_is_told_in_words(value: object, said: str) -> None:
    assert describe_value(value) == said


@pytest.mark.browser
@BROWSER_TEST[1]
def test_long_settings_and_reasons_wrap_in_a_window_of_1200_pixels(tmp_path: Path) -> None:
    report = make_report()
    network = {"name": "torchvision/wide_resnet50_2", "layers": ["layer2", "layer3"], "weights": "/a/folder/wide_resnet50_2-95faca4d.pth"}
    values = {
        "detector.backbone": network | {"weights_sha256": "0" * 64},
        "detector.learning_rate": 0.007232371232294039,
        "detector.memory_size": 256,
    }
    criteria = {"few anomalies": 0.987654321, "pseudo-anomalies": 0.987654321, "loss": 0.00123456789}
    trials = [replace(row, values=values, criteria=criteria if row.criteria else {}) for row in report.trials]
    trials[0] = replace(trials[0], chosen_by=list(criteria))
    trials[2] = replace(trials[2], failed=f"DetectorError: fetch https://nowhere.example/{'x' * 200} and put it where it belongs " * 2)
    test = {"AUROC": (0.8125, 0.75, 0.875), "average precision": (0.8125, 0.75, 0.875)}
    choices = [ChoiceRow(criterion, "highest", 0, 0.987654321, 2, test) for criterion in criteria]
    (tmp_path / "search.html").write_text(render(replace(report, trials=trials, choices=choices)))
    with open_browser(tmp_path / "profile") as browser:
        browser.set_window_size(1200, 1000)
        browser.get((tmp_path / "search.html").as_uri())
        widths = browser.execute_script("return [...document.querySelectorAll('.table')].map(one => [one.scrollWidth, one.clientWidth])")
        assert len(widths) == 3
        assert all(needed <= given for needed, given in widths)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def ticks(svg: str) -> list[float]:
    return sorted({float(text) for text in re.findall(r">(\d\.\d+)</text>", svg)})


def test_the_scale_is_that_of_the_draws_and_what_is_far_below_is_named_outside_it() -> None:
    line = StudyLine("1 type", [2, 5], [(0.93, 0.95), (0.95, 0.95)])
    svg = draw_study([line], references={"best": 0.96, "worst": 0.25, "loss": 0.25}, prefix="x")
    assert "below the scale: worst, loss 0.250" in svg
    assert "best 0.960" in svg
    assert min(ticks(svg)) > 0.9
    near = draw_study([line], references={"best": 0.96, "worst": 0.91, "loss": 0.96}, prefix="x")
    assert "below the scale" not in near
    assert "best, loss 0.960" in near
    assert "worst 0.910" in near
    one = draw_study([StudyLine("1 type", [2], [(1.0, 1.0)])], references={"best": 1.0, "worst": 1.0}, prefix="x")
    assert max(ticks(one)) <= 1.001


def test_labels_stand_beside_the_lines() -> None:
    line = StudyLine("1 type", [2, 5], [(0.6, 0.9, 0.9), (0.9, 0.9, 0.9)])
    svg = draw_study([line], references={"best": 0.9, "worst": 0.6, "loss": 0.89, "pseudo-anomalies": 0.895}, prefix="x")
    levels = re.findall(r'<path d="(M [^"]*)"[^>]*stroke-dasharray: 1\.6', svg)
    assert len(levels) == 4
    ends = max(float(re.findall(r"-?[\d.]+", path)[2]) for path in levels)
    labels = re.findall(r'<text[^>]*(?:x="([\d.]+)"|translate\(([\d.]+)[^>]*)[^>]*>(?:best|worst|loss|pseudo)[^<]*</text>', svg)
    assert len(labels) == 4
    assert all(float(x or moved) > ends for x, moved in labels)
