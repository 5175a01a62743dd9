"""An interval of the AUROC without resampling."""

import numpy as np
from scipy.special import ndtri

from methods.evaluation.bootstrap import Estimate
from methods.evaluation.histograms import SubjectCounts
from methods.evaluation.metrics import UndefinedMetricError


def delong_interval(counts: SubjectCounts, *, level: float = 0.95) -> Estimate:
    """AUROC with the interval of DeLong et al. 1988, for subjects with several items as Obuchowski 1997 ("Nonparametric analysis of
    clustered ROC curve data", Biometrics 53, equations 3 to 6); the two are one where each subject has one item.

    The ends are cut to [0, 1]. It is symmetric and therefore too optimistic near 1, where BCa is not.

    Raises:
        UndefinedMetricError: a class has fewer than two subjects.
    """
    normal, abnormal = counts.normal, counts.abnormal
    n_of_value, a_of_value = normal.sum(0).astype(float), abnormal.sum(0).astype(float)
    m, n = a_of_value.sum(), n_of_value.sum()
    m_of, n_of = abnormal.sum(1).astype(float), normal.sum(1).astype(float)
    with_abnormal, with_normal, subjects = int((m_of > 0).sum()), int((n_of > 0).sum()), len(counts.subjects)
    if min(with_abnormal, with_normal) < 2:
        raise UndefinedMetricError(
            f"DeLong's interval needs two subjects of each class; {with_normal} have normal and {with_abnormal} abnormal items"
        )
    below = np.cumsum(n_of_value) - n_of_value / 2  # normal items below each value, ties half
    above = m - np.cumsum(a_of_value) + a_of_value / 2
    x, y = abnormal @ (below / n), normal @ (above / m)  # sums of the placements of each subject's items, (S,)
    auroc = float(x.sum() / m)
    dx, dy = x - m_of * auroc, y - n_of * auroc
    s10 = with_abnormal / ((with_abnormal - 1) * m) * (dx**2).sum()
    s01 = with_normal / ((with_normal - 1) * n) * (dy**2).sum()
    s11 = subjects / (subjects - 1) * (dx * dy).sum()
    deviation = float(np.sqrt(max(s10 / m + s01 / n + 2 * s11 / (m * n), 0.0)))
    reach = float(ndtri((1 + level) / 2)) * deviation
    return Estimate(auroc, max(auroc - reach, 0.0), min(auroc + reach, 1.0), deviation, "DeLong")
