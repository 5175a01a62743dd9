"""Who is tested, cut by what the manifest says of the samples: source, site, skin tone, projection, finding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from methods.curation.quality import skin_tone
from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import SubjectCounts, take_subjects
from methods.evaluation.metrics import UndefinedMetricError
from tasks.measures import measure

_GROUPINGS = {"dataset": "source", "site": "site", "skin_tone": "skin tone", "ita": "skin tone by ITA", "projection": "projection"}


@dataclass(frozen=True)
class Cells:
    """Samples that are alike in subject, label and everything that subgroups are made by: counted together, they lose nothing.

    Attributes:
        names: (n,) the cell of each sample.
        table: one row a cell, in the order of the sorted names: subject_id, label, finding, the groupings, and n, its samples.
    """

    names: np.ndarray
    table: pd.DataFrame

    def by_subject(self, counts: SubjectCounts, chosen: np.ndarray | None = None) -> SubjectCounts:
        """Counts by cell as counts by subject.

        Args:
            counts: of cells.
            chosen: (C,) bool, which cells; all if None.
        """
        numbers = np.array([int(name) for name in counts.subjects], int)
        kept = np.arange(len(numbers)) if chosen is None else np.flatnonzero(chosen[numbers])
        return take_subjects(counts, kept, self.table["subject_id"].iloc[numbers[kept]].astype(str).tolist())


def assign_cells(rows: pd.DataFrame) -> Cells:
    """The cells of labelled samples (n,) of a manifest."""
    tones = rows["ita_deg"].map(lambda angle: skin_tone(angle) if pd.notna(angle) else None)
    table = rows[["subject_id", "label", "finding", *(set(_GROUPINGS) - {"ita"})]].assign(ita=tones)
    grouped = table.groupby(list(table.columns), dropna=False, sort=True)
    numbers = grouped.ngroup().to_numpy()
    first = np.unique(numbers, return_index=True)[1]
    cells = table.iloc[first].reset_index(drop=True).assign(n=np.bincount(numbers))
    return Cells(np.array([f"{number:09d}" for number in numbers], object), cells)


def stratify(rows: pd.DataFrame, bootstrap: BootstrapConfig) -> dict[str, str] | None:
    """The stratum of each subject; None where it is whether the subject carries anomaly, which every level counts itself."""
    if bootstrap.stratify == "anomaly":
        return None
    if bootstrap.stratify == "none":
        return dict.fromkeys(rows["subject_id"].astype(str), "all")
    values = rows[bootstrap.stratify].fillna("none").astype(str)
    joined = values.groupby(rows["subject_id"].astype(str)).agg(lambda found: "+".join(sorted(set(found))))
    return {str(subject): stratum for subject, stratum in joined.items()}


def measure_subgroups(cells: Cells, image: SubjectCounts, pixel: SubjectCounts | None, **options: Any) -> list[dict[str, Any]]:
    """Every metric of every subgroup; a finding is set against all normal samples (Lu and Xu 2018, table 1).

    A grouping with one value is none. The subgroup's metrics are empty and `note` says why where they are undefined.

    Args:
        cells: of the samples.
        image: counts of image scores by cell.
        pixel: of pixels by cell, where there are any.
        **options: of `measures.measure`; strata hold within subgroups too.

    Returns:
        Rows of grouping, group, subjects, normal, abnormal (samples), metrics (rows of `measure`) and note.
    """
    table = cells.table
    found = []
    for column, grouping in {**_GROUPINGS, "finding": "finding"}.items():
        members = table[column].where(table["label"] == 1) if column == "finding" else table[column]
        groups = sorted(members.dropna().unique())
        for group in groups if len(groups) > 1 else []:
            chosen = (members == group).fillna(False).to_numpy(bool)
            if column == "finding":
                chosen = chosen | (table["label"] == 0).to_numpy(bool)
            found.append({"grouping": grouping, "group": str(group)} | _measure_group(cells, chosen, image, pixel, options))
    return found


def _measure_group(
    cells: Cells, chosen: np.ndarray, image: SubjectCounts, pixel: SubjectCounts | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    part = cells.table[chosen]
    counted = {
        "subjects": int(part["subject_id"].nunique()),
        "normal": int(part["n"][part["label"] == 0].sum()),
        "abnormal": int(part["n"][part["label"] == 1].sum()),
    }
    pixels = None if pixel is None else cells.by_subject(pixel, chosen)
    if pixels is not None and not (pixels.carries_anomaly.any() and pixels.normal.nnz):
        pixels = None
    try:
        return counted | {"metrics": measure(cells.by_subject(image, chosen), pixels, **options).rows, "note": ""}
    except UndefinedMetricError as error:
        return counted | {"metrics": [], "note": str(error)}
