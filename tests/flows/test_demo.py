"""The quick demo as a user runs it, its report in a real browser, and the second run that has nothing to do."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Demo(Workplace):
    """A demo that was run, and its report."""

    @property
    def report(self) -> Path:
        return max((self.folder / "normascope-demo-quick" / "reports").glob("*/report.html"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    made = Demo(tmp_path_factory.mktemp("demo"))
    first = made.call("demo", "--quick")
    assert first.returncode == 0, first.stderr
    assert str(made.report) in first.stdout
    assert re.search(r"Prefect UI: http://127\.0\.0\.1:\d+", first.stdout)
    yield made
    assert "stopped the server" in made.call("ui", "--stop").stdout


def test_the_second_run_of_the_demo_does_nothing_and_says_so(demo: Demo) -> None:
    again = demo.call("demo", "--quick")
    assert again.returncode == 0, again.stderr
    assert "all cached, nothing was done" in again.stderr


def test_the_report_says_painted_and_holds_every_interval(demo: Demo) -> None:
    numbers = json.loads((demo.report.parent / "metrics.json").read_text())
    assert "PAINTED" in numbers["generated_note"]
    for detector in numbers["detectors"]:
        for metric in detector["metrics"]:
            assert metric["low"] <= metric["value"] <= metric["high"], metric


def test_the_feature_detector_finds_what_was_painted(demo: Demo) -> None:
    numbers = json.loads((demo.report.parent / "metrics.json").read_text())
    (patchcore,) = (detector for detector in numbers["detectors"] if detector["kind"] == "patchcore")
    values = {(metric["level"], metric["name"]): metric["value"] for metric in patchcore["metrics"]}
    assert values["pixel", "AUROC"] > 0.85  # the quick demo has few and small slides; docs/results.md has the full one
    assert values["image", "AUROC"] > 0.85


def test_doctor_finds_nothing_missing(demo: Demo) -> None:
    looked = demo.call("doctor", "--store", "normascope-demo-quick")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "server" in looked.stdout


def test_a_typo_ends_with_one_line_that_names_the_key(demo: Demo) -> None:
    (demo.folder / "typo.yaml").write_text("name: x\nstore: s\nsource: {kind: folder, path: p}\ntilling: {}\n")
    refused = demo.call("run", "typo.yaml")
    assert refused.returncode == 1
    assert "tilling: unknown key; did you mean tiling?" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.browser
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="Debian's chromium and chromium-driver are not here"
)
def test_the_report_opens_in_a_browser_with_its_numbers_and_pictures(demo: Demo) -> None:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(demo.report.as_uri())
        text = browser.find_element("tag name", "body").text
        numbers = json.loads((demo.report.parent / "metrics.json").read_text())
        for detector in numbers["detectors"]:
            for metric in detector["metrics"]:
                assert f"{metric['value']:.3f}" in text
        assert "painted" in text.lower()
        widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
        assert len(widths) > 20
        assert min(widths) > 0
    finally:
        browser.quit()
