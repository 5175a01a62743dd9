import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from storage.reports.contents import DetectorResult, GallerySample, MetricRow, Report, SlideOverview, Threshold
from storage.reports.page import render_html
from tests.browsers import BROWSER_TEST, open_browser

pytestmark = BROWSER_TEST


def make_report() -> Report:
    """Two detectors that light up different halves of one slide."""
    left = np.full((64, 96), np.nan, np.float32)
    left[8:56, 8:88] = 0.0
    right = left.copy()
    left[8:56, 8:48], right[8:56, 48:88] = 1.0, 1.0
    picture = np.full((64, 96, 3), 200, np.uint8)
    mask = left == 1
    maps = {"<left>": left, "right": right}
    line = (np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.75, 1.0]))
    detectors = [
        DetectorResult(
            name=name,
            kind="memory",
            metrics=[MetricRow("image", "AUROC", 0.75 + place / 8, 0.625, 0.9375), MetricRow("pixel", "Dice", 0.5, note="one subject")],
            thresholds=[Threshold("pixel", "largest Dice", 0.5, "validation masks", "validation")],
            roc={"image": line, "pixel": line},
            pr={"image": line},
            scores_normal=np.linspace(0, 1, 9),
            scores_abnormal=np.linspace(0.5, 2, 9),
            colour_range=(0.0, 1.0),
        )
        for place, name in enumerate(maps)
    ]
    sample = GallerySample("a1", "x 0", "abnormal", "pen", picture, mask, maps)
    slide = SlideOverview("slide </script>", "p1", "test", "abnormal", "pen", 0.5, 9600, 6400, picture, mask, maps)
    return Report("Browser", True, "Painted.", {"Seed": "1"}, [], detectors, [sample], [slide], 6, 100)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_html(make_report()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: webdriver.Chrome, address: str) -> webdriver.Chrome:
    for log in ("browser", "performance"):
        browser.get_log(log)  # reading empties it: what other tests left
    browser.get(address)
    return browser


def photograph_slide(page: webdriver.Chrome) -> np.ndarray:
    stack = page.find_element(By.CSS_SELECTOR, ".slide .stack")
    return np.asarray(Image.open(io.BytesIO(stack.screenshot_as_png)).convert("RGB")).astype(int)


def look_at_halves(page: webdriver.Chrome) -> tuple[np.ndarray, np.ndarray]:
    """Colours in the middle of the slide's left and right half."""
    picture = photograph_slide(page)
    height, width = picture.shape[:2]
    return picture[height // 2, width // 4], picture[height // 2, 3 * width // 4]


def move_slider(page: webdriver.Chrome, name: str, value: int) -> None:
    page.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))", name, value
    )


def test_page_opens_without_errors_and_without_the_network(page):
    assert [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked  # the page itself: the log works
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_every_picture_is_decoded(page):
    widths = page.execute_script("return [...document.images].map((image) => image.complete && image.naturalWidth)")
    assert len(widths) >= 6
    assert all(widths)


def test_table_shows_the_reports_numbers(page):
    for row in make_report().detectors[0].metrics:
        cells = page.find_elements(By.CSS_SELECTOR, f'tr[data-level="{row.level}"][data-metric="{row.name}"] .value')
        expected = [next(one.value for one in detector.metrics if one.name == row.name) for detector in make_report().detectors]
        assert [float(cell.get_attribute("data-value")) for cell in cells] == expected
        assert [cell.text for cell in cells] == [f"{value:.3f}" for value in expected]


def test_opacity_slider_changes_the_layer(page):
    heat = page.find_element(By.CSS_SELECTOR, "img.heat.shown")
    move_slider(page, "opacity", 20)
    assert float(heat.value_of_css_property("opacity")) == 0.2
    move_slider(page, "opacity", 0)
    left, right = look_at_halves(page)
    assert np.abs(left - 200).max() <= 3  # the bare overview
    assert np.abs(right - 200).max() <= 3


def test_choosing_a_detector_changes_the_heat(page):
    before_left, before_right = look_at_halves(page)
    Select(page.find_element(By.ID, "layer")).select_by_visible_text("right")
    after_left, after_right = look_at_halves(page)
    np.testing.assert_allclose(before_left, after_right, atol=3)
    np.testing.assert_allclose(before_right, after_left, atol=3)
    assert np.abs(before_left - before_right).max() > 60


def test_cut_at_the_threshold_hides_low_scores_only(page):
    before_left, before_right = look_at_halves(page)
    page.find_element(By.ID, "at-threshold").click()
    left, right = look_at_halves(page)
    np.testing.assert_allclose(left, before_left, atol=3)
    assert np.abs(right - 200).max() <= 3
    assert np.abs(before_right - 200).max() > 20
    assert float(page.find_element(By.ID, "cut-shown").text) == pytest.approx(0.5, abs=0.01)


def test_without_javascript_the_first_map_lies_over_the_slide(page):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.refresh()
        left, right = look_at_halves(page)
        assert not page.find_element(By.ID, "controls").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert np.abs(left - right).max() > 60
