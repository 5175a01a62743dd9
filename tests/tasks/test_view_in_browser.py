"""The page of `normascope view` as a person uses it, in Chromium."""

import io
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.browsers import BROWSER_TEST, open_browser
from tests.viewed import FAILED_ROW, GREY, KEY, PICTURES, REASON, SHARD_ROWS, TILES, make_archive, scores_of, serving

pytestmark = BROWSER_TEST
ROWS = PICTURES + TILES
SCORES = scores_of(range(ROWS))
BY_SCORE = sorted((row for row in range(ROWS) if row != FAILED_ROW), key=lambda row: -SCORES[row])

Show = Callable[[str], webdriver.Chrome]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(make_archive(tmp_path_factory.mktemp("viewed")).uri) as host:
        yield f"http://{host}/"


@pytest.fixture
def show(browser: webdriver.Chrome, address: str) -> Iterator[Show]:
    """Opens a state of the page; at the end nothing may stand in the console, and nothing may have been asked of anyone else."""
    for log in ("browser", "performance"):
        browser.get_log(log)  # reading empties it: what other tests left

    def show(state: str) -> webdriver.Chrome:
        browser.get("about:blank")  # else only the part after # changes and the sliders stay where they were
        browser.get(f"{address}?key={KEY}#{state}")
        return browser

    yield show
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))] == []


def wait(page: webdriver.Chrome, condition: Callable[[webdriver.Chrome], object], what: str) -> None:
    WebDriverWait(page, 20, poll_frequency=0.05).until(condition, what)


def rows_shown(page: webdriver.Chrome) -> list[int]:
    return [
        int(row) for row in page.execute_script("return [...document.querySelectorAll('#samples tbody tr')].map((row) => row.dataset.row)")
    ]


def wait_for_rows(page: webdriver.Chrome, rows: list[int]) -> None:
    wait(page, lambda page: rows_shown(page) == rows, f"rows {rows}")


def move_slider(page: webdriver.Chrome, slider: WebElement, value: int) -> None:
    page.execute_script("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", slider, value)


def cut_slider(page: webdriver.Chrome) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, '[data-layer="0"] .cut')


def photograph(element: WebElement) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")).astype(int)


def colours(element: WebElement, *places: tuple[float, float]) -> list[np.ndarray]:
    """Means of 17 × 17 pixels round places (x, y), which are shares of width and height."""
    picture = photograph(element)
    height, width = picture.shape[:2]
    centres = [(int(y * height), int(x * width)) for x, y in places]
    return [picture[y - 8 : y + 9, x - 8 : x + 9].mean((0, 1)) for y, x in centres]


def test_the_highest_scores_stand_first_and_pages_turn(show: Show) -> None:
    page = show("view=table")
    wait_for_rows(page, BY_SCORE[:50])
    shown = [cell.text for cell in page.find_elements(By.CSS_SELECTOR, "#samples .score")]
    assert [float(text.split("\n")[0].removeprefix("▲ ")) for text in shown] == pytest.approx([SCORES[row] for row in BY_SCORE[:50]])
    assert all("\np " in text for text in shown)
    page.find_element(By.ID, "next").click()
    wait_for_rows(page, [*BY_SCORE[50:], FAILED_ROW])
    assert page.find_element(By.ID, "page-shown").text == f"51–{ROWS} of {ROWS}"
    assert REASON in page.find_element(By.CSS_SELECTOR, "#samples tbody tr:last-child").text
    page.back()
    wait_for_rows(page, BY_SCORE[:50])


def test_filters_narrow_the_table_and_stay_in_the_address(show: Show) -> None:
    page = show("view=table")
    wait_for_rows(page, BY_SCORE[:50])
    Select(page.find_element(By.NAME, "label")).select_by_value("abnormal")
    abnormal = [row for row in BY_SCORE if row < PICTURES and row % 6 == 5]
    wait_for_rows(page, abnormal)
    page.find_element(By.NAME, "subject").send_keys("00002")
    wait_for_rows(page, [5])
    page.refresh()
    wait_for_rows(page, [5])
    page.find_element(By.CSS_SELECTOR, "#filters [type=reset]").click()
    wait_for_rows(page, BY_SCORE[:50])
    page.find_element(By.NAME, "sample").send_keys("nothing like it")
    wait(page, lambda page: page.find_element(By.ID, "empty").is_displayed(), "the remark that nothing matches")


def test_two_versions_stand_side_by_side_and_either_sorts(show: Show) -> None:
    page = show("view=table&layers=0.1")
    wait_for_rows(page, BY_SCORE[:50])
    heads = page.find_elements(By.CSS_SELECTOR, "#samples thead button")
    assert [head.text for head in heads] == ["maps v1 ▼", "whole v1"]
    assert f"{ROWS - 2 * SHARD_ROWS} pending" in page.find_element(By.ID, "progress").text
    heads[1].click()
    done = [row for row in BY_SCORE if row < 2 * SHARD_ROWS]
    wait_for_rows(page, [*done, FAILED_ROW, *range(2 * SHARD_ROWS, ROWS)][:50])
    page.find_elements(By.CSS_SELECTOR, "#samples thead button")[1].click()
    wait_for_rows(page, [*done[::-1], FAILED_ROW, *range(2 * SHARD_ROWS, ROWS)][:50])


def test_thumbnails_and_maps_are_drawn(show: Show) -> None:
    page = show("view=table&dataset=ward")
    ward = [row for row in BY_SCORE if row < PICTURES and row % 3 == 1]
    wait_for_rows(page, [*ward, FAILED_ROW])
    wait(page, lambda page: len(page.find_elements(By.CSS_SELECTOR, "#samples canvas.heat")) == len(ward), "a map a scored row")
    drawn = """return [...document.querySelectorAll('#samples canvas.heat')].every((canvas) => canvas.width === 8)"""
    wait(page, lambda page: page.execute_script(drawn), "maps of eight pixels")
    page.execute_script("for (const image of document.images) image.loading = 'eager'")
    whole = "return [...document.querySelectorAll('#samples img')].every((image) => image.complete && image.naturalWidth)"
    wait(page, lambda page: page.execute_script(whole), "pictures")


def test_a_row_opens_by_keyboard_and_its_sliders_change_what_is_drawn(show: Show) -> None:
    page = show("view=table")
    wait_for_rows(page, BY_SCORE[:50])
    body = page.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.ARROW_DOWN)
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    subject = f"subject-{BY_SCORE[1] // 2:05d}" if BY_SCORE[1] < PICTURES else "subject-slide"
    wait(page, lambda page: subject in page.find_element(By.ID, "row-title").text, f"sample of {subject}")
    wait(page, lambda page: page.execute_script("return document.querySelector('#row-figures canvas.heat')?.width === 8"), "a map")
    [bare, covered] = page.find_elements(By.CSS_SELECTOR, "#row-figures .stack")
    places = ((0.25, 0.5), (0.75, 0.5))
    move_slider(page, page.find_element(By.ID, "opacity"), 100)
    low, high = colours(covered, *places)
    assert high[1] > 180  # viridis ends yellow
    assert high[2] < 100
    assert np.abs(low - colours(bare, places[0])[0]).max() > 10  # and begins dark blue, seen through
    move_slider(page, cut_slider(page), 500)
    assert np.abs(colours(covered, places[0])[0] - colours(bare, places[0])[0]).max() <= 6
    np.testing.assert_allclose(colours(covered, places[1])[0], high, atol=3)
    move_slider(page, page.find_element(By.ID, "opacity"), 0)
    assert np.abs(photograph(covered) - photograph(bare)).mean() < 2
    body.send_keys(Keys.ARROW_RIGHT)
    wait(page, lambda page: f"row={BY_SCORE[2]}" in page.current_url, "the next sample")
    body.send_keys(Keys.ESCAPE)
    wait_for_rows(page, BY_SCORE[:50])


def test_a_slide_opens_with_its_heatmap_and_regions(show: Show) -> None:
    page = show("view=slides")
    wait(page, lambda page: page.find_elements(By.CSS_SELECTOR, "#slides tbody tr"), "a slide")
    page.find_element(By.CSS_SELECTOR, "#slides tbody tr").click()
    stage = page.find_element(By.ID, "slide-stage")
    wait(page, lambda page: page.find_elements(By.CSS_SELECTOR, "#regions li"), "a region")
    wait(page, lambda page: "heatmap of the slide" in page.find_element(By.ID, "heat-shows").text, "what lies above")
    page.execute_script("document.querySelectorAll('.navigator, .scale-bar').forEach((part) => { part.style.visibility = 'hidden' })")
    # the slide is square: it stands in the middle of the stage, as wide as that is high
    share = stage.size["height"] / stage.size["width"] / 2
    left, right, unscored = (0.5 - share / 2, 0.4), (0.5 + share / 2, 0.4), (0.5 - share / 2, 0.9)
    is_bare = lambda colour: np.abs(colour - GREY).max() <= 4  # noqa: E731

    def looks(bare: tuple[bool, ...]) -> Callable[[webdriver.Chrome], bool]:
        return lambda _: tuple(is_bare(colour) for colour in colours(stage, left, right, unscored)) == bare

    move_slider(page, page.find_element(By.ID, "opacity"), 100)
    wait(page, looks((False, False, True)), "colour where there are scores")
    low, high = colours(stage, left, right)
    assert high[0] > high[2] + 60  # yellow
    assert low[2] > low[1]  # blue
    move_slider(page, cut_slider(page), 500)
    wait(page, looks((True, False, True)), "colour above the threshold only")
    move_slider(page, cut_slider(page), 0)
    wait(page, looks((False, False, True)), "colour where there are scores, again")
    move_slider(page, page.find_element(By.ID, "opacity"), 0)
    wait(page, looks((True, True, True)), "the bare slide")
    path = page.find_element(By.CSS_SELECTOR, ".outlines path.region")
    before = path.rect
    assert before["width"] == pytest.approx(before["height"] * 2 / 3, rel=0.02)
    page.find_element(By.CSS_SELECTOR, "#regions button").click()
    wait(page, lambda _: path.rect["width"] < 0.9 * before["width"] or path.rect["width"] > 1.1 * before["width"], "a jump to the region")
    stage.send_keys(Keys.ESCAPE)
    wait(page, lambda page: page.find_element(By.ID, "slides-view").is_displayed(), "the list of slides")


def test_a_tile_leads_to_its_place_on_the_slide(show: Show) -> None:
    page = show(f"view=row&row={PICTURES + 5}&at=3")
    wait(page, lambda page: page.find_element(By.ID, "row-slide").is_displayed(), "the way to the slide")
    page.find_element(By.ID, "row-slide").click()
    wait(page, lambda page: page.find_elements(By.CSS_SELECTOR, ".outlines path.sample"), "the sample's box")
    stage = page.find_element(By.ID, "slide-stage").rect

    def is_centred(_: webdriver.Chrome) -> bool:
        box = page.find_element(By.CSS_SELECTOR, ".outlines path.sample").rect
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        return bool(np.hypot(middle[0] - stage["x"] - stage["width"] / 2, middle[1] - stage["y"] - stage["height"] / 2) < 20)

    wait(page, is_centred, "the sample in the middle")
    page.find_element(By.ID, "slide-stage").send_keys(Keys.ESCAPE)
    wait(page, lambda page: page.find_element(By.ID, "row-view").is_displayed(), "the sample")
