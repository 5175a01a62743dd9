"""What calibration promised on validation, and what came of it on the test split."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.calibration import null_from_dict
from methods.evaluation.histograms import SubjectCounts
from tasks.measures import measure_point

_RATES = (0.01, 0.05, 0.1)


def check_points(
    points: list[dict[str, Any]],
    image: SubjectCounts,
    pixel: SubjectCounts | None,
    bootstrap: BootstrapConfig,
    strata: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The card's operating points, each with rows of `measure` for the split that is counted."""
    return [point | {"came": measure_point(point["level"], point["value"], image, pixel, bootstrap, strata)} for point in points]


def check_nulls(nulls: list[dict[str, Any]], scores: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Of each fitted null distribution: how many samples have a p-value of at most a rate. A right one calls the rate's share of normals.

    Args:
        nulls: of the card.
        scores: (N,) image scores.
        labels: (N,) 0 normal, 1 abnormal; both are there.

    Returns:
        Rows of kind, rate, normal and abnormal: shares in [0, 1]; or of kind and why_none.
    """
    rows: list[dict[str, Any]] = []
    for document in nulls:
        if "why_none" in document:
            rows.append(document)
            continue
        p = null_from_dict(document).p_values(scores)
        for rate in _RATES:
            called = p <= rate
            shares = {name: float(called[labels == label].mean()) for label, name in enumerate(("normal", "abnormal"))}
            rows.append({"kind": document["kind"], "rate": rate, **shares})
    return rows
