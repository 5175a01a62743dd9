"""The tables of a reproduced paper: what our runs came to, in the paper's rows and columns, and the files that show it."""

import hashlib
import platform
from importlib.metadata import version

import numpy as np
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from methods.detectors.registry import DetectorConfig
from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.manifest import read_manifest
from storage.reports.reproduction_page import (
    PaperTable,
    Reproduction,
    RunRow,
    SampleRow,
    TableCell,
    TableRow,
    render_reproduction,
    reproduction_as_csv,
    reproduction_as_json,
    reproduction_as_markdown,
)
from tasks.caching import cached_task, code_fingerprint
from tasks.reproduce import ColumnPlan, PaperPlan, RowPlan, TablePlan, find_detector, read_number
from tasks.reproduce_cells import Experiment, Found, NotMeasuredError, can_pool, pool_cells, read_found

_SPLITS = ("train", "validation", "test")
_LABELS = {0: "normal", 1: "abnormal"}


class ReproductionReference(TypedDict):
    """The tables as files, and what failed of them, a line each."""

    html_uri: str
    json_uri: str
    csv_uri: str
    markdown_uri: str
    failed: list[str]


@cached_task(
    name="write reproduction",
    run_name="write reproduction {title}",
    outputs_exist=lambda reference: all(filesystems.exists(uri) for name, uri in reference.items() if name.endswith("_uri")),
)
def write_reproduction(
    title: str,
    plan: PaperPlan,
    experiments: list[Experiment],
    *,
    detectors: dict[str, tuple[DetectorConfig, ...]],
    bootstraps: dict[str, BootstrapConfig],
    generated: bool,
    notice: str | None,
    store: str,
) -> ReproductionReference:
    """Fill the paper's tables with what the experiments came to, and write the page, JSON, CSV and Markdown.

    Args:
        title: shown in the UI.
        plan: of the paper.
        experiments: of all its runs.
        detectors: of each run, as the plan knows them; the cells of an experiment are in their order.
        bootstraps: of each run: of the intervals.
        generated: the data are, and everything says so.
        notice: what a reader must know of the data.
        store: where the files go.
    """
    by_run = {name: [one for one in experiments if one["run"] == name] for name in plan.runs}
    filler = _Filler(by_run, detectors, bootstraps)
    reproduction = Reproduction(
        paper=plan.paper,
        title=plan.title,
        citation=plan.citation,
        generated=generated,
        notice=notice,
        tables=[filler.fill(table) for table in plan.tables],
        differences=list(plan.differences),
        samples=[row for name, run in plan.runs.items() for row in _count_samples(name, run.samples, by_run[name])],
        runs=[_describe_run(experiment, store) for experiment in experiments],
        made=_describe_making(plan, experiments, generated),
    )
    failed = [f"{one['title']}: {one['failed']}" for one in experiments if one["failed"]]
    return _write(reproduction, [*failed, *_list_failures(reproduction)], store)


class _Filler:
    """Puts values into tables."""

    def __init__(
        self,
        experiments: dict[str, list[Experiment]],
        detectors: dict[str, tuple[DetectorConfig, ...]],
        bootstraps: dict[str, BootstrapConfig],
    ) -> None:
        self._experiments, self._detectors, self._bootstraps = experiments, detectors, bootstraps

    def fill(self, table: TablePlan) -> PaperTable:
        rows = [TableRow(row.name, [self._fill_cell(table, row, place) for place in range(len(table.columns))]) for row in table.rows]
        counts = sorted({cell.experiments for row in rows for cell in row.cells if cell.value is not None})
        return PaperTable(
            title=table.title,
            where=table.where,
            columns=[column.name for column in table.columns],
            settings=list(table.settings),
            rows=rows,
            percent=table.percent,
            decimals=table.decimals,
            spread=table.spread,
            spread_is=_explain_spread(table, counts, self._bootstraps),
            notes=list(table.notes),
        )

    def _fill_cell(self, table: TablePlan, row: RowPlan, place: int) -> TableCell:
        column = table.columns[place]
        printed = row.published[place] if row.published else (None,)
        published = (*printed, *[None] * (len(table.settings) - len(printed)))
        numbers = [read_number(text) for text in published]
        values = tuple(None if number is None else number / (100 if table.percent else 1) for number in numbers)
        try:
            found, count = self._find(table, row, column)
        except NotMeasuredError as error:
            reason = str(error)
            return TableCell(published, values, note=reason.removeprefix("failed: "), failed=reason.startswith("failed: "))
        return TableCell(published, values, found.value, found.low, found.high, found.deviation, count)

    def _find(self, table: TablePlan, row: RowPlan, column: ColumnPlan) -> tuple[Found, int]:
        """The number of a cell, and how many experiments it is the mean of."""
        missing = row.missing or column.missing
        if missing is not None:
            raise NotMeasuredError(missing)
        name = row.run or column.run or ""
        experiments = [one for one in self._experiments[name] if column.normal in (None, one["normal"])]
        position = 0 if row.detector is None else find_detector(self._detectors[name], row.detector)
        if row.constant is not None:  # the answer is every detector's: of one that has been evaluated
            position = next((place for place, cell in enumerate(experiments[0]["cells"]) if cell["evaluation"] is not None), 0)
        found = [read_found(experiment, position, column, row) for experiment in experiments]
        if len(found) == 1:
            return found[0], 1
        by_seed = [
            np.mean([each.value for each, one in zip(found, experiments, strict=True) if one["seed"] == seed])
            for seed in _seeds(experiments)
        ]
        deviation = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
        ends = None
        if table.spread == "interval" and can_pool(column, row):
            ends = pool_cells(experiments, position, column, bootstrap=self._bootstraps[name])
        low, high = ends if ends is not None else (None, None)
        return Found(float(np.mean(by_seed)), low, high, deviation), len(found)


def _seeds(experiments: list[Experiment]) -> list[int]:
    return sorted({experiment["seed"] for experiment in experiments})


def _explain_spread(table: TablePlan, counts: list[int], bootstraps: dict[str, BootstrapConfig]) -> str:
    names = {row.run or column.run or "" for row in table.rows for column in table.columns} & set(bootstraps)
    bootstrap = bootstraps[min(names)] if names else BootstrapConfig()
    resamples = f"{bootstrap.replicates} resamples of the subjects{', not stratified' if bootstrap.stratify == 'none' else ''}"
    several = " or ".join(str(count) for count in counts if count > 1)
    if table.spread == "interval":
        interval = f"{bootstrap.level:.0%} intervals of {resamples}"
        return f"means over {several} experiments, with {interval} and of the seeds." if several else f"{interval}."
    if several:
        return f"means over {several} experiments; ± is the standard deviation over the seeds."
    return f"± is the standard deviation of {resamples}."


def _count_samples(run: str, published: dict[str, str], experiments: list[Experiment]) -> list[SampleRow]:
    """The paper's samples by split and label beside those of the first experiment."""
    manifest = experiments[0]["manifest"]
    counted: dict[str, int] = {}
    if manifest is not None:
        rows = read_manifest(manifest["uri"], digest=manifest["digest"])
        used = rows[rows["excluded"].isna() & rows["label"].notna() & rows["split"].isin(_SPLITS)]
        for split in _SPLITS:
            for label, named in _LABELS.items():
                if count := int(((used["split"] == split) & (used["label"] == label)).sum()):
                    counted[f"{split} {named}"] = count
        counted |= {name: int((used["split"] == name).sum()) for name in published if name in _SPLITS}
    order = [f"{split} {label}" for split in _SPLITS for label in _LABELS.values()]
    names = [*order, *(name for name in published if name not in order)]
    return [SampleRow(run, name, published.get(name), counted.get(name)) for name in names if name in published or name in counted]


def _describe_run(experiment: Experiment, store: str) -> RunRow:
    """Its report as seen from the page, which lies two folders below the store."""
    report = experiment["report"]
    link = None if report is None else "../../" + report["html_uri"].removeprefix(store.rstrip("/") + "/")
    return RunRow(experiment["title"], link, experiment["failed"] or "")


def _describe_making(plan: PaperPlan, experiments: list[Experiment], generated: bool) -> dict[str, str]:
    return {
        "again": f"normascope reproduce {plan.paper}{' --miniature' if generated else ''}",
        **{f"configuration of {name}": filesystems.name_of(run.config) for name, run in plan.runs.items()},
        **{
            f"manifest of {one['run']}" + (f", {one['normal']} normal" if one["normal"] is not None else ""): one["manifest"]["digest"]
            for one in experiments  # the same with every seed
            if one["manifest"] is not None
        },
        "code": f"normascope {version('normascope')}, fingerprint {code_fingerprint(__name__)[:16]}",
        "packages": ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "numpy", "scikit-learn")),
        "python": platform.python_version(),
    }


def _list_failures(reproduction: Reproduction) -> list[str]:
    lines = [f"{row.name}: {cell.note}" for table in reproduction.tables for row in table.rows for cell in row.cells if cell.failed]
    return list(dict.fromkeys(lines))


def _write(reproduction: Reproduction, failed: list[str], store: str) -> ReproductionReference:
    contents = {
        "html": render_reproduction(reproduction),
        "json": reproduction_as_json(reproduction),
        "csv": reproduction_as_csv(reproduction),
        "markdown": reproduction_as_markdown(reproduction),
    }
    digest = hashlib.sha256(contents["html"].encode()).hexdigest()[:12]
    name = f"{reproduction.paper}{'-GENERATED' if reproduction.generated else ''}-{digest}"
    folder = filesystems.join(store, "reproductions", name)
    uris = {kind: filesystems.join(folder, f"table.{'md' if kind == 'markdown' else kind}") for kind in contents}
    for kind, text in contents.items():
        filesystems.write_bytes(uris[kind], text.encode())
    return ReproductionReference(
        html_uri=uris["html"], json_uri=uris["json"], csv_uri=uris["csv"], markdown_uri=uris["markdown"], failed=failed
    )
