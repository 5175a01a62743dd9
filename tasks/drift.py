"""Compare the scores of an archive with a reference: all of it and source by source; written as a page and as JSON."""

import platform
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from methods.evaluation.distributions import distribution_functions
from methods.evaluation.drift import KS, PSI, Drift, DriftConfig, compare_sides
from methods.evaluation.histograms import SubjectCounts, count_scores
from methods.evaluation.metrics import UndefinedMetricError
from storage import filesystems
from storage.models import BundleError, read_card
from storage.reports.drift_page import BinRow, Curves, DriftReport, FigureRow, GroupRow, SideRow, ThresholdRow, drift_as_json, render_drift
from storage.scores import open_store
from tasks.caching import cached_task, code_fingerprint, digest_of
from tasks.drift_sides import GROUPINGS, Side, SideReference, read_side
from tasks.progress import show_progress

_CURVE_POINTS = 400
_MOST_GROUPS = 40  # of a grouping
_OF_GROUPS = (KS, PSI, "median")  # and the share from the first threshold on


class DriftReference(TypedDict):
    """The page, its numbers, and the population stability index of the whole archive.

    `psi_low` is the lower end of its interval, by which schedules decide: with few subjects the index itself is high without any drift. It
    is the index where there is no interval.
    """

    html_uri: str
    json_uri: str
    psi: float
    psi_low: float


@cached_task(
    name="measure drift",
    run_name="measure drift of {archive[title]}",
    outputs_exist=lambda drift: filesystems.exists(drift["html_uri"]) and filesystems.exists(drift["json_uri"]),
)
def measure_drift(reference: SideReference, archive: SideReference, *, config: DriftConfig, root: str) -> DriftReference:
    """Compare the scored items of an archive with a reference and write the page.

    Args:
        reference: which rows it is.
        archive: which rows are compared with it.
        config: bins, replicates, permutations.
        root: the archive, in whose folder `drift` the page is written.

    Raises:
        UndefinedMetricError: a side has no scored item.
        ManifestError, ArchiveError, ScoreStoreError: a side is not what its reference names.
    """
    thresholds, notes = _read_thresholds(archive)
    sides = read_side(reference), read_side(archive)
    for side, described in zip(sides, (reference, archive), strict=True):
        if not len(side.scores):
            why = ", ".join(f"{count} {name}" for name, count in side.left_out.items())
            raise UndefinedMetricError(f"nothing to compare: {described['title']} has no scored item ({why})")
    counts = _count(*sides)
    compared = compare_sides(counts, config, thresholds={row.name: row.value for row in thresholds})
    report = DriftReport(
        title=f"Drift: {archive['title']}",
        notes=notes,
        level=config.level,
        sides=[
            SideRow(name, described["title"], items, subjects, side.left_out)
            for name, described, side, items, subjects in zip(
                ("reference", "archive"), (reference, archive), sides, compared.items, compared.subjects, strict=True
            )
        ],
        figures=_as_rows(compared),
        groups=_compare_groups(*sides, config, thresholds),
        thresholds=thresholds,
        bins=[BinRow(**asdict(found)) for found in compared.bins],
        curves=_thin(counts, compared),
        run=_describe(reference, archive, config),
    )
    index = compared.figure(PSI)
    html_uri, json_uri = _write(report, filesystems.join(root, "drift"))
    low = index.value if index.low is None else index.low
    return DriftReference(html_uri=html_uri, json_uri=json_uri, psi=index.value, psi_low=low)


def describe_drift(drift: DriftReference) -> list[str]:
    """What was found, a line each."""
    content = filesystems.read_json(drift["json_uri"])
    lines = [f"{side['name']}: {side['images']} images of {side['subjects']} subjects, {side['title']}" for side in content["sides"]]
    for row in content["figures"]:
        interval = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
        shift = "" if row["reference"] is None else f"{row['reference']:.4g} -> {row['archive']:.4g}, "
        lines.append(f"{row['name']}: {shift}{row['value']:.3g}{interval}, p {row['p']:.3g}; without drift up to {row['unchanged']:.3g}")
    return lines


def tabulate_groups(drift: DriftReference) -> list[dict[str, Any]]:
    """One row a group of every grouping, for the UI."""
    return [
        {
            "grouping": row["grouping"],
            "group": row["group"],
            "reference": row["images"][0],
            "archive": row["images"][1],
            "against": row["against"],
            **{figure["name"]: round(figure["value"], 4) for figure in row["figures"]},
            "p": row["figures"][0]["p"] if row["figures"] else None,
            "note": row["note"],
        }
        for row in filesystems.read_json(drift["json_uri"])["groups"]
    ]


def _count(reference: Side, archive: Side, chosen: tuple[np.ndarray, np.ndarray] | None = None) -> SubjectCounts:
    """The items of both sides, or the chosen of each (bool), by subject."""
    kept = chosen or (np.ones(len(reference.scores), bool), np.ones(len(archive.scores), bool))
    scores, subjects = (
        np.concatenate([values[mask] for values, mask in zip(of_sides, kept, strict=True)])
        for of_sides in ((reference.scores, archive.scores), (reference.subjects, archive.subjects))
    )
    labels = np.repeat([0, 1], [int(mask.sum()) for mask in kept])
    return count_scores(scores, labels, np.unique(subjects, return_inverse=True)[1])


def _compare_groups(reference: Side, archive: Side, config: DriftConfig, thresholds: list[ThresholdRow]) -> list[GroupRow]:
    """Every group that one of the sides has, the largest of the archive first; a grouping with one group is none."""
    rows = []
    for column, grouping in GROUPINGS.items():
        sizes = {name: int((archive.groups[column] == code).sum()) for code, name in enumerate(archive.names[column])}
        sizes |= {name: 0 for name in reference.names[column] if name not in sizes}
        ordered = sorted(sizes, key=lambda name: (-sizes[name], name))
        with show_progress(f"drift by {grouping}", len(ordered)) as bar:
            for name in ordered[:_MOST_GROUPS] if len(ordered) > 1 else []:
                rows.append(_compare_group(reference, archive, column, name, config, thresholds))
                bar.advance()
        if len(ordered) > _MOST_GROUPS:
            rest = sum(sizes[name] for name in ordered[_MOST_GROUPS:])
            rows.append(GroupRow(grouping, f"{len(ordered) - _MOST_GROUPS} more", "", (0, rest), (0, 0), [], "not compared one by one"))
    return rows


def _compare_group(reference: Side, archive: Side, column: str, name: str, config: DriftConfig, thresholds: list[ThresholdRow]) -> GroupRow:
    """A group against the reference's items of the same group, or against all of the reference where it has none."""
    own, theirs = (_members(side, column, name) for side in (reference, archive))
    counted = (int(own.sum()), int(theirs.sum()))
    subjects = len(np.unique(reference.subjects[own])), len(np.unique(archive.subjects[theirs]))
    row = GroupRow(GROUPINGS[column], name, "", counted, subjects, [], "undefined: the archive has no image of it")
    if not counted[1]:
        return row
    against = own if counted[0] else np.ones(len(own), bool)
    compared = compare_sides(
        _count(reference, archive, (against, theirs)), config, thresholds={found.name: found.value for found in thresholds[:1]}
    )
    shown = [figure for figure in _as_rows(compared) if figure.name in (*_OF_GROUPS, *(found.name for found in thresholds))]
    note = "" if counted[0] else "new: the reference has no image of it"
    return replace(row, against="the same group" if counted[0] else "all of the reference", figures=shown, note=note)


def _members(side: Side, column: str, name: str) -> np.ndarray:
    names = side.names[column]
    return side.groups[column] == names.index(name) if name in names else np.zeros(len(side.scores), bool)


def _read_thresholds(side: SideReference) -> tuple[list[ThresholdRow], list[str]]:
    """The image thresholds of the model's card, the preferred one first, and why there are none."""
    uri = open_store(side["store_uri"]).attributes.get("model_uri")
    try:
        calibration = read_card(str(uri), digest=side["model_digest"]).get("calibration", {})
    except (OSError, BundleError) as error:
        return [], [f"No shares at thresholds: the model's card cannot be read ({type(error).__name__})."]
    points = [point for point in calibration.get("operating_points", []) if point["level"] == "image"]
    if not points:
        return [], [f"No shares at thresholds: the model's card has none ({calibration.get('why_none', 'no reason given')})."]
    rows = [
        ThresholdRow(f"share from {point['value']:.4g} on: {point['rule']}", point["value"], point["rule"], point["detail"])
        for point in points
    ]
    return list({row.name: row for row in rows}.values()), []


def _as_rows(compared: Drift) -> list[FigureRow]:
    return [FigureRow(**asdict(figure)) for figure in compared.figures]


def _thin(counts: SubjectCounts, compared: Drift) -> Curves:
    """Both distribution functions at so many scores, evenly along them, that a plot shows no difference."""
    functions = distribution_functions(counts)
    travelled = functions.sum(0)
    chosen = np.searchsorted(travelled, np.linspace(0, travelled[-1], _CURVE_POINTS)).clip(max=len(travelled) - 1)
    farthest = int(np.abs(functions[0] - functions[1]).argmax())
    kept = np.unique(np.concatenate([[0, farthest, len(travelled) - 1], chosen]))
    return Curves(counts.values[kept], functions[0, kept], functions[1, kept], float(counts.values[farthest]), compared.bands)


def _describe(reference: SideReference, archive: SideReference, config: DriftConfig) -> dict[str, str]:
    given = reference["rows_uri"] if reference["kind"] == "archive" else reference["store_uri"]
    slot, rows = archive["store_uri"].split("/")[-2], f"{archive['first']}:{archive['stop']}"
    return {
        "model": archive["model_digest"],
        "reference": f"{reference['store_uri']}, rows of digest {reference['rows_digest']}",
        "archive": f"{archive['store_uri']}, rows of digest {archive['rows_digest']}",
        **{name: str(value) for name, value in config.model_dump(mode="json").items()},
        "code": f"normascope {version('normascope')}, fingerprint {code_fingerprint(__name__)[:16]}",
        "packages": ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "numba")),
        "python": platform.python_version(),
        "run again": f"normascope drift {archive['rows_uri']} --reference {given} --slot {slot} --rows {rows}",
    }


def _write(report: DriftReport, folder: str) -> tuple[str, str]:
    contents = {"drift.html": render_drift(report), "drift.json": drift_as_json(report)}
    place = filesystems.join(folder, digest_of(contents)[:16])
    for name, text in contents.items():
        filesystems.write_bytes(filesystems.join(place, name), text.encode())
    return filesystems.join(place, "drift.html"), filesystems.join(place, "drift.json")
