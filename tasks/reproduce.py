"""What `normascope reproduce` is told of a paper: its tables as printed, which of our runs stands beside which, what differs."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from methods.detectors.registry import DetectorConfig
from storage import filesystems
from tasks.measures import CONSTANT_ANSWERS

Printed = Annotated[tuple[str | None, ...], BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,))]
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


class PaperError(ValueError):
    """A paper that cannot be reproduced as asked; the message says what lacks and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataPlan(_Strict):
    """A data set that a paper needs."""

    what: str = Field(description="its name, and which parts of it")
    where: str = Field(description="where a person gets it")


class RunPlan(_Strict):
    """A run's configuration, and how often it is run."""

    config: str = Field(description="file of the run's configuration, relative to this one")
    classes: dict[str, tuple[int | str, ...]] | None = Field(
        default=None, description="the source's key that says what is normal, and the values that it takes in turn"
    )
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="of the training; the split stays")
    samples: dict[str, str] = Field(default={}, description="the paper's, as printed, by split and label: `train normal`")

    @model_validator(mode="after")
    def _one_key(self) -> "RunPlan":
        if self.classes is not None and (len(self.classes) != 1 or not all(self.classes.values())):
            raise ValueError(f"classes: expected one key of the source with one value or more, got {list(self.classes)}")
        return self


class ColumnPlan(_Strict):
    """What stands in a column: a metric, of some of the samples."""

    name: str = Field(description="as printed")
    level: Literal["image", "pixel"] = "image"
    metric: str = Field(description="as in the run's report")
    run: str | None = Field(default=None, description="whose; null where the row says it")
    finding: str | None = Field(default=None, description="the abnormal samples of one finding, against all normal ones")
    normal: str | None = Field(default=None, description="the experiment in which this class is normal; null: the mean of all")
    split: Literal["test", "validation"] = "test"
    samples: Literal["all", "abnormal"] = Field(default="all", description="abnormal: pixels of abnormal samples alone")
    at: float | str | None = Field(
        default=None, description="a threshold, or words of the rule that chose one on validation; null: the preferred one"
    )
    missing: str | None = Field(default=None, description="why there is no value of ours")

    @model_validator(mode="after")
    def _is_measured(self) -> "ColumnPlan":
        if self.samples == "abnormal" and self.level != "pixel":
            raise ValueError("samples: abnormal leaves one class of images; it needs level: pixel")
        if self.split == "validation" and (self.finding or self.at is not None or self.samples != "all"):
            raise ValueError("split: validation has the metrics of the model's card, of all samples at the preferred threshold")
        return self


class RowPlan(_Strict):
    """A method of the table and what is printed of it."""

    name: str = Field(description="as printed")
    detector: dict[str, Any] | None = Field(
        default=None, description="values of the run's one detector that has them: {kind: vae, score: iwae}; {} matches any group of keys"
    )
    constant: str | None = Field(default=None, description="no detector but one answer to everything")
    run: str | None = Field(default=None, description="whose; null where the columns say it")
    at: float | str | None = Field(default=None, description="as of the columns, for all of them that have none")
    published: tuple[Printed, ...] = Field(
        default=(), description="a column each, as printed; a list where `settings` names several; null: nothing. None given: all null"
    )
    missing: str | None = Field(default=None, description="why there is no value of ours")

    @model_validator(mode="after")
    def _has_one_source(self) -> "RowPlan":
        if sum(given is not None for given in (self.detector, self.constant, self.missing)) != 1:
            raise ValueError(f"row {self.name!r}: expected one of detector, constant and missing")
        if self.constant is not None and self.constant not in CONSTANT_ANSWERS:
            raise ValueError(f"row {self.name!r}: constant is one of {', '.join(CONSTANT_ANSWERS)}")
        return self


class TablePlan(_Strict):
    """One of the paper's tables."""

    title: str
    where: str = Field(description="number of the table, or the section")
    columns: tuple[ColumnPlan, ...] = Field(min_length=1)
    rows: tuple[RowPlan, ...] = Field(min_length=1)
    settings: tuple[str, ...] = Field(default=("paper",), min_length=1, description="what each of a cell's published values is")
    percent: bool = Field(default=False, description="printed in %")
    decimals: int = Field(default=3, ge=0)
    spread: Literal["interval", "deviation"] = Field(
        default="interval", description="beside our value: its interval, or ± the standard deviation over seeds (of one: over resamples)"
    )
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_rectangular(self) -> "TablePlan":
        for row in self.rows:
            if row.published and len(row.published) != len(self.columns):
                raise ValueError(f"{self.title}, {row.name}: {len(row.published)} published values for {len(self.columns)} columns")
            for printed in row.published:
                if printed != (None,) and len(printed) > len(self.settings):
                    raise ValueError(f"{self.title}, {row.name}: {len(printed)} values in a cell, and settings names {len(self.settings)}")
        return self


class PaperPlan(_Strict):
    """A paper: what it needs, our runs, its tables, and what is known to differ."""

    paper: str = Field(pattern="^[a-z]+$", description="its name on the command line")
    title: str
    citation: str
    data: dict[str, DataPlan] = Field(description="by the name of its folder or file")
    runs: dict[str, RunPlan] = Field(min_length=1)
    tables: tuple[TablePlan, ...] = Field(min_length=1)
    differences: tuple[str, ...] = Field(min_length=1, description="known ones between our run and the paper's")

    @model_validator(mode="after")
    def _names_its_runs(self) -> "PaperPlan":
        for table in self.tables:
            for row in table.rows:
                for column in table.columns:
                    where = f"{table.title}, {row.name}, {column.name}"
                    name = row.run or column.run
                    if not (row.missing or column.missing) and name not in self.runs:
                        raise ValueError(f"{where}: expected a run of {', '.join(self.runs)} at the row or the column, got {name}")
                    if row.run and column.run:
                        raise ValueError(f"{where}: the run is named by the row and by the column")
                    if column.normal is not None and column.normal not in _classes_of(self.runs, name):
                        raise ValueError(f"{where}: no class {column.normal} in the run {name}")
        return self


class View(_Strict):
    """What is measured of a store beside its evaluation: at another threshold, or on the abnormal samples alone."""

    level: Literal["image", "pixel"]
    samples: Literal["all", "abnormal"]
    at: float | str | None

    @property
    def key(self) -> str:
        """Its name among the views of a cell."""
        return f"{self.level}, {self.samples} samples, at {'the preferred threshold' if self.at is None else self.at}"


def find_view(row: RowPlan, column: ColumnPlan) -> View | None:
    """What a cell wants beside the evaluation; None where that holds it."""
    at = column.at if column.at is not None else row.at
    if row.constant is not None or column.split != "test" or column.finding is not None or (at is None and column.samples == "all"):
        return None
    return View(level=column.level, samples=column.samples, at=at)


def find_detector(detectors: Sequence[DetectorConfig], wanted: Mapping[str, Any]) -> int:
    """The position of the one detector with the wanted values.

    Raises:
        PaperError: none, or several.
    """
    found = [position for position, detector in enumerate(detectors) if _has(detector.model_dump(mode="json"), wanted)]
    if len(found) != 1:
        raise PaperError(f"expected one detector with {dict(wanted)} in the run, found {len(found)}: name more of its values, or add it")
    return found[0]


def find_views(plan: PaperPlan, run: str, detectors: Sequence[DetectorConfig]) -> list[list[View]]:
    """What is measured of each detector of a run beside its evaluation, in the order of the tables."""
    views: list[dict[str, View]] = [{} for _ in detectors]
    for table in plan.tables:
        for row in table.rows:
            for column in table.columns:
                if row.detector is None or column.missing or (row.run or column.run) != run:
                    continue
                view = find_view(row, column)
                if view is not None:
                    views[find_detector(detectors, row.detector)][view.key] = view
    return [list(found.values()) for found in views]


def read_number(printed: str | None) -> float | None:
    """The first number in what is printed: 0.944 of "0.944 ± 0.002"; None where there is none."""
    found = _NUMBER.search(printed.replace("\N{MINUS SIGN}", "-")) if printed is not None else None
    return float(found[0]) if found is not None else None


def check_data(plan: PaperPlan, folder: str) -> None:
    """Look whether the paper's data sets are in a folder.

    Raises:
        PaperError: one lacks; the message says what to get and where to put it.
    """
    absent = [name for name in plan.data if not filesystems.exists(filesystems.join(folder, name))]
    if absent:
        raise PaperError(
            f"{plan.title} needs data that {folder} lacks:\n"
            + "\n".join(f"  {filesystems.join(folder, name)}: {plan.data[name].what}; from {plan.data[name].where}" for name in absent)
            + f"\nPut it there, or name the folder that holds it with --data. `normascope reproduce {plan.paper} --miniature` needs none: "
            "it runs on generated data, whose figures mean nothing."
        )


def _has(values: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(values, Mapping) and all(key in values and _has(values[key], value) for key, value in wanted.items())
    return bool(values == wanted)


def _classes_of(runs: Mapping[str, RunPlan], name: str | None) -> list[str]:
    run = runs.get(name or "")
    return [str(value) for values in (run.classes or {}).values() for value in values] if run is not None else []
