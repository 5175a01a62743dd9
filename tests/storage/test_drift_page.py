"""The page of a comparison: every number on it and in its JSON, names that are no markup, and nothing where there is nothing."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from storage.reports.drift_page import BinRow, Curves, DriftReport, FigureRow, GroupRow, SideRow, ThresholdRow, drift_as_json, render_drift

HOSTILE = '</script><script>alert("x")</script>'


def make_report() -> DriftReport:
    distance = FigureRow("KS distance", None, None, 0.3125, 0.125, 0.5, "band", 0.0025, 0.21875)
    mean = FigureRow("mean", 1.5, 2.25, 0.75, None, None, "no interval: one subject", 0.5, 1.0)
    return DriftReport(
        title="Drift: archive",
        notes=["No shares."],
        level=0.95,
        sides=[SideRow("reference", "ae.zarr", 1200, 40, {"failed": 3}), SideRow("archive", "ae v1", 56789, 99, {"failed": 17})],
        figures=[distance, mean],
        groups=[
            GroupRow("source", "clinic", "the same group", (1200, 50000), (40, 90), [distance], ""),
            GroupRow("source", "scanner", "all of the reference", (0, 6789), (0, 9), [replace(distance, low=None, high=None)], "new"),
            GroupRow("source", "ward", "", (10, 0), (1, 0), [], "undefined: no image"),
        ],
        thresholds=[ThresholdRow("share from 2 on", 2.0, "Youden", "sensitivity 0.9")],
        bins=[BinRow(None, 1.0, 600, 10000), BinRow(1.0, None, 600, 46789)],
        curves=Curves(np.arange(4.0), np.array([0.25, 0.5, 0.75, 1]), np.array([0, 0.1875, 0.5, 1]), farthest=1.0, bands=(0.0625, 0.03125)),
        run={"code": "normascope 1"},
    )


def test_the_page_holds_every_figure_and_group() -> None:
    html = render_drift(make_report())
    assert html.count("<svg") == 3
    assert "[0.125, 0.5]" in html
    assert "56,789" in html
    assert "no interval: one subject" in html
    assert "undefined: no image" in html
    assert "0 / 6,789, new" in html
    assert "KS distance 0.312" in html
    (numbers,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert json.loads(numbers) == json.loads(drift_as_json(make_report()))
    assert render_drift(make_report()) == html


def test_names_are_text_and_never_markup() -> None:
    report = make_report()
    groups = [replace(row, grouping=HOSTILE, group=HOSTILE, note=HOSTILE, against=HOSTILE) for row in report.groups]
    sides = [replace(row, title=HOSTILE) for row in report.sides]
    thresholds = [replace(row, rule=HOSTILE, promised=HOSTILE) for row in report.thresholds]
    hostile = replace(report, title=HOSTILE, notes=[HOSTILE], groups=groups, sides=sides, thresholds=thresholds, run={HOSTILE: HOSTILE})
    html = render_drift(hostile)
    assert HOSTILE not in html
    assert len(re.findall("<script", html)) == 1


def test_without_bands_and_groups_there_are_two_figures() -> None:
    report = make_report()
    html = render_drift(replace(report, groups=[], curves=replace(report.curves, bands=None)))
    assert html.count("<svg") == 2
    assert "band that holds" not in html
    assert 'href="#groups"' not in html


def test_one_score_and_one_bin_are_drawn() -> None:
    one = Curves(np.zeros(1), np.ones(1), np.ones(1), farthest=0.0, bands=None)
    assert render_drift(replace(make_report(), curves=one, bins=[BinRow(None, None, 3, 4)])).count("<svg") == 3


def test_a_group_without_figures_says_why() -> None:
    with pytest.raises(ValueError, match="say why in its note"):
        GroupRow("source", "ward", "", (0, 0), (0, 0), [], "")
