"""The page of a reproduced paper, opened in a browser: nothing runs, nothing is fetched, nothing is cut off."""

from pathlib import Path

from storage.reports.reproduction_page import (
    PaperTable,
    Reproduction,
    RunRow,
    SampleRow,
    TableCell,
    TableRow,
    format_ours,
    render_reproduction,
)
from tests.browsers import BROWSER_TEST, open_browser

HOSTILE = '</script><script>alert("x")</script>'


def make_page(name: str = "VAE", *, columns: int = 10) -> Reproduction:
    """A wide table in %: a value with its interval, one that failed, one that is not ours."""
    found = [
        TableCell(("87.2 ± 0.3", "86"), (0.872, 0.86), 0.8521, 0.8, 0.9, 0.01, 3),
        TableCell(("5", None), (0.05, None), note=f"TrainingError: {name}", failed=True),
        TableCell((None, None), (None, None), note="not among our detectors"),
    ]
    rows = [TableRow(f"{name} {number}", [found[(number + place) % 3] for place in range(columns)]) for number in range(3)]
    table = PaperTable(
        name, "Table 1", [f"column {place}" for place in range(columns)], ["left", "right"], rows, True, 1, "interval", "of 3.", ["a note"]
    )
    runs = [RunRow(name, "../../reports/a/report.html"), RunRow("b", None, "no data")]
    return Reproduction("some", name, name, True, name, [table], [name], [SampleRow("a", "train normal", "250", 24)], runs, {name: name})


def test_a_value_has_its_spread_in_the_tables_unit() -> None:
    page = make_page()
    (table,) = page.tables
    value, failed, missing = table.rows[0].cells[:3]
    assert format_ours(value, table) == "85.2 [80.0, 90.0]"
    assert format_ours(failed, table).startswith("failed: TrainingError")
    assert format_ours(missing, table) == "– (not among our detectors)"


def test_names_are_text_and_never_markup() -> None:
    html = render_reproduction(make_page(HOSTILE))
    assert "<script>alert" not in html
    assert html.count("<script") == 1


class TestInBrowser:
    pytestmark = BROWSER_TEST

    def test_the_page_shows_its_tables_without_scripts_or_requests_and_fits(self, tmp_path: Path) -> None:
        path = tmp_path / "table.html"
        path.write_text(render_reproduction(make_page()))
        with open_browser(tmp_path / "profile") as browser:
            browser.get(path.as_uri())
            assert browser.get_log("browser") == []
            assert "GENERATED" in browser.title
            assert browser.find_element("css selector", ".banner").is_displayed()
            assert len(browser.find_elements("css selector", ".paper tbody")) == 3
            fits = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            assert browser.execute_script(fits)  # a wide table scrolls by itself
