"""The tables of a reproduced paper as one HTML page, as JSON, as CSV and as Markdown. Plain data in, text out; nothing is computed here."""

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

Spread = Literal["interval", "deviation"]


@dataclass(frozen=True)
class TableCell:
    """What the paper prints, and ours beside it.

    Attributes:
        published: as printed, one for each of the table's settings; None where nothing is.
        published_values: the numbers in them, as fractions.
        value: ours, a fraction; None where there is none, and `note` says why.
        low, high: its interval.
        deviation: standard deviation over seeds, or over the resamples of the one seed.
        experiments: how many it is the mean of.
        note: why there is no value.
        failed: it should be there.
    """

    published: tuple[str | None, ...]
    published_values: tuple[float | None, ...]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    deviation: float | None = None
    experiments: int = 0
    note: str = ""
    failed: bool = False

    def __post_init__(self) -> None:
        if self.value is None and not self.note:
            raise ValueError("a cell without a value says why in its note")


@dataclass(frozen=True)
class TableRow:
    """A method: a cell for each column."""

    name: str
    cells: list[TableCell]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        where: in the paper.
        settings: what each published value of a cell is.
        percent: values are printed in %.
        spread: what stands beside our values, and `spread_is` says what that is.
    """

    title: str
    where: str
    columns: list[str]
    settings: list[str]
    rows: list[TableRow]
    percent: bool
    decimals: int
    spread: Spread
    spread_is: str
    notes: list[str]


@dataclass(frozen=True)
class SampleRow:
    """Samples of a split and label in a run: the paper's, as printed, and ours."""

    run: str
    samples: str
    published: str | None
    ours: int | None


@dataclass(frozen=True)
class RunRow:
    """An experiment and its full report, as a link relative to this page; or why there is none."""

    title: str
    report: str | None
    note: str = ""


@dataclass(frozen=True)
class Reproduction:
    """All that the page shows. `generated` data are said to be so wherever anything of them is shown; `notice` says more."""

    paper: str
    title: str
    citation: str
    generated: bool
    notice: str | None
    tables: list[PaperTable]
    differences: list[str]
    samples: list[SampleRow]
    runs: list[RunRow]
    made: dict[str, str]


GENERATED = "GENERATED data: the figures under “ours” mean nothing for the paper."


def render_reproduction(reproduction: Reproduction) -> str:
    """The page with its style inside; the same reproduction gives the same text."""
    room = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(room), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"format_number": format_number, "format_spread": format_spread}
    return environment.get_template("reproduction.html.j2").render(
        reproduction=reproduction,
        generated=GENERATED,
        css=Markup((room / "report.css").read_text("utf-8")),
        data=Markup(reproduction_as_json(reproduction).replace("<", "\\u003c")),  # a name must not close the script element
    )


def reproduction_as_json(reproduction: Reproduction) -> str:
    """All numbers of the page, keys sorted."""
    return json.dumps(dataclasses.asdict(reproduction), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def reproduction_as_csv(reproduction: Reproduction) -> str:
    """One row a cell and setting: whether the data are real or GENERATED, what is published as printed, ours."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["data", "table", "method", "column", "setting", "published", "value", "low", "high", "sd", "experiments", "note"])
    data = "GENERATED" if reproduction.generated else "real"
    for found in reproduction.tables:
        for row in found.rows:
            for column, cell in zip(found.columns, row.cells, strict=True):
                ours = [cell.value, cell.low, cell.high, cell.deviation, cell.experiments, cell.note]
                for setting, published in zip(found.settings, cell.published, strict=True):
                    table.writerow([data, found.title, row.name, column, setting, published, *ours])
    return text.getvalue()


def reproduction_as_markdown(reproduction: Reproduction) -> str:
    """The tables and the differences, for people and for the Prefect UI."""
    lines = [f"# {'GENERATED – ' if reproduction.generated else ''}{_escape(reproduction.title)}", ""]
    if reproduction.generated:
        lines += [f"> **{GENERATED}** {_escape(reproduction.notice or '')}", ""]
    for table in reproduction.tables:
        lines += [f"## {_escape(table.title)} ({_escape(table.where)})", ""]
        lines += [f"| | | {' | '.join(map(_escape, table.columns))} |", "|---" * (2 + len(table.columns)) + "|"]
        ours = "**ours (GENERATED)**" if reproduction.generated else "**ours**"
        for row in table.rows:
            for place, setting in enumerate(table.settings):
                printed = [_escape(cell.published[place] or "–") for cell in row.cells]
                if place == 0 or any(cell.published[place] for cell in row.cells):
                    lines.append(f"| {_escape(row.name) if place == 0 else ''} | {_escape(setting)} | {' | '.join(printed)} |")
            lines.append(f"| | {ours} | {' | '.join(_say_ours(cell, table) for cell in row.cells)} |")
        lines += ["", *(f"{_escape(text)}\n" for text in (f"Ours: {table.spread_is}", *table.notes))]
    lines += ["## Known differences", "", *(f"* {_escape(text)}" for text in reproduction.differences)]
    return "\n".join(lines) + "\n"


def format_ours(cell: TableCell, table: PaperTable) -> str:
    """Our value with its spread; or why there is none."""
    if cell.value is None:
        return f"failed: {cell.note}" if cell.failed else f"– ({cell.note})"
    return " ".join(filter(None, (format_number(cell.value, table), format_spread(cell, table))))


def format_spread(cell: TableCell, table: PaperTable) -> str:
    """What stands beside our value, in the table's unit; empty where there is none."""
    if table.spread == "deviation" and cell.deviation is not None:
        return f"± {format_number(cell.deviation, table)}"
    if table.spread == "interval" and cell.low is not None and cell.high is not None:
        return f"[{format_number(cell.low, table)}, {format_number(cell.high, table)}]"
    return ""


def format_number(value: float, table: PaperTable) -> str:
    """A fraction in the table's unit, with its decimals."""
    return f"{(100 if table.percent else 1) * value:.{table.decimals}f}"


def _say_ours(cell: TableCell, table: PaperTable) -> str:
    """As `format_ours`; of a note, which may hold anything, no mark is Markdown's."""
    return format_ours(cell, table) if cell.value is not None else _escape(format_ours(cell, table))


def _escape(text: str) -> str:
    """No character of a name is Markdown, HTML or a column's end."""
    text = " ".join(text.split())
    for mark in "\\|<>*_`[]#":
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;")
