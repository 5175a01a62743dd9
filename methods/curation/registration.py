"""Whether two pictures show one scene: keypoints that a single rotation, scale and shift carries from one to the other."""

import numpy as np
from skimage.feature import ORB, match_descriptors
from skimage.measure import ransac
from skimage.transform import SimilarityTransform

_KEYPOINTS = 400
_RESIDUAL_PX = 4.0
_TRIALS = 500
_LEAST_MATCHES = 8


def count_inliers(a: np.ndarray, b: np.ndarray, *, rng: np.random.Generator) -> int:
    """Keypoints of `a` that one similarity transform puts on their match in `b`; geometric verification as of image retrieval.

    ORB keypoints (Rublee et al. 2011), mutual nearest descriptors with Lowe's ratio of 0.8, RANSAC with 4 px. Two pictures of one lesion,
    zoomed, cropped or turned, share dozens; strangers hardly ever more than ten. Smooth pictures without keypoints share none: they are
    not verified.

    Args:
        a: (h, w) grey, any range; about 256 px.
        b: (h', w') grey.
        rng: of the RANSAC draws.

    Returns:
        The number of inliers, 0 where there is nothing to match.
    """
    found = [_describe(picture) for picture in (a, b)]
    if any(points is None for points in found):
        return 0
    (points_a, descriptors_a), (points_b, descriptors_b) = found  # type: ignore[misc]
    matches = match_descriptors(descriptors_a, descriptors_b, cross_check=True, max_ratio=0.8)
    if len(matches) < _LEAST_MATCHES:
        return 0
    ends = points_a[matches[:, 0]][:, ::-1], points_b[matches[:, 1]][:, ::-1]
    model, inliers = ransac(ends, SimilarityTransform, min_samples=3, residual_threshold=_RESIDUAL_PX, max_trials=_TRIALS, rng=rng)
    return 0 if inliers is None or not model else int(inliers.sum())


def _describe(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(n, 2) row and column of keypoints and (n, 256) descriptors; None where there are none."""
    orb = ORB(n_keypoints=_KEYPOINTS, fast_threshold=0.03)
    try:
        orb.detect_and_extract((grey - grey.min()) / max(float(np.ptp(grey)), 1e-6))
    except (RuntimeError, ValueError):  # "ORB found no features"; a picture that is too small for the descriptor
        return None
    return (orb.keypoints, orb.descriptors) if len(orb.keypoints) else None
