"""Which pictures are the same picture: verification of candidates, and the groups that follow from them."""

import numpy as np
import pandas as pd
from skimage.metrics import structural_similarity

from methods.curation.forests import number_trees, unite_all
from methods.curation.hashing import turned
from methods.curation.text_columns import first_equal

_SSIM_RANGE = 5.0  # dynamic range of a standardised picture: 255 grey levels are about 5 standard deviations of a photograph


def verify_pair(a: np.ndarray, b: np.ndarray, *, turns: bool = False) -> float:
    """How alike two small registered grey pictures are, to tell copies from accidents of the hash.

    Mean structural similarity (Wang et al. 2004: Gaussian window of σ 1.5, population covariance) of the standardised pictures; so
    brightness and contrast do not count, and fine structure does, in which two radiographs of the same projection differ.

    Args:
        a: (h, w) grey, for instance `shrink_grey(image, side_px=64)`; at least 11 × 11.
        b: the same shape.
        turns: take the best of b's 8 flips and quarter turns; the pictures must be square.

    Returns:
        Similarity in [-1, 1], 1 of a picture with itself.

    Raises:
        ValueError: other shapes, or a picture of one grey value: it has no structure to compare.
    """
    if a.shape != b.shape or a.ndim != 2 or min(a.shape) < 11 or (turns and a.shape[0] != a.shape[1]):
        raise ValueError(f"expected two grey pictures of one shape, at least 11 × 11, square to be turned; got {a.shape} and {b.shape}")
    a, b = _standardised(a), _standardised(b)
    return max(
        float(structural_similarity(a, turned(b, k), data_range=_SSIM_RANGE, gaussian_weights=True, sigma=1.5, use_sample_covariance=False))
        for k in range(8 if turns else 1)
    )


def semantic_candidates(features: np.ndarray, *, k: int, least_cosine: float, block: int = 2048) -> np.ndarray:
    """Pairs of which one is among the k nearest of the other by the cosine of their features; candidates, to be verified.

    Exact, by inner products in blocks: n² d multiplications, block² and 2 n k numbers in memory. Of equally near ones the first count.

    Args:
        features: (n, d) float32, finite; need not be normalised, a row of zeros is near to none.
        k: neighbours of each.
        least_cosine: smaller ones are no candidates.
        block: rows at a time.

    Returns:
        (m, 2) int64, i < j in each row, rows sorted and unique.

    Raises:
        ValueError: features that are not (n, d) finite, k < 1.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not np.isfinite(features).all() or k < 1:
        raise ValueError(f"expected finite features (n, d) and k ≥ 1, got {features.shape} and k = {k}")
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    pairs = [np.empty((0, 2), np.int64)]
    for start in range(0, len(features), block):
        pairs.append(_nearest(features, start, min(start + block, len(features)), k, least_cosine, block))
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def join_groups(n: int, *relations: np.ndarray | pd.Series) -> np.ndarray:
    """Connected components over everything that belongs together: duplicates, lesions, subjects.

    Args:
        n: samples.
        relations: each either (m, 2) integers, pairs of samples, or (n,) labels of the samples, where None and NaN join nothing.

    Returns:
        (n,) int64 labels, numbered by first appearance.

    Raises:
        ValueError: a relation of another shape, or a pair that names a sample outside [0, n).
    """
    parent = np.arange(n, dtype=np.int32)
    for relation in relations:
        if relation.ndim == 2 and relation.shape[1] == 2:
            if relation.size and (relation.min() < 0 or relation.max() >= n):
                raise ValueError(f"pairs name samples {relation.min()} to {relation.max()}; there are {n}")
            unite_all(parent, relation[:, 0].astype(np.int64), relation[:, 1].astype(np.int64))
        elif relation.shape == (n,):
            first = first_equal(relation)
            known = np.flatnonzero(first >= 0)
            unite_all(parent, known, first[known])
        else:
            raise ValueError(f"expected pairs (m, 2) or labels ({n},), got {relation.shape}")
    return number_trees(parent)


def _standardised(grey: np.ndarray) -> np.ndarray:
    grey = np.asarray(grey, np.float64)
    deviation = grey.std()
    if not deviation > 1e-6:
        raise ValueError("a picture of one grey value has no structure to compare; leave out pictures without a hash")
    return np.asarray((grey - grey.mean()) / deviation)


def _nearest(features: np.ndarray, start: int, stop: int, k: int, least: float, block: int) -> np.ndarray:
    """(m, 2) each row of [start, stop) and its up to k nearest others."""
    value = np.full((stop - start, k), -np.inf, np.float32)
    place = np.full((stop - start, k), -1, np.int64)
    for left in range(0, len(features), block):
        cosine = features[start:stop] @ features[left : left + block].T
        own = np.arange(max(start, left), min(stop, left + block))
        cosine[own - start, own - left] = -np.inf
        for i in np.flatnonzero((cosine >= np.maximum(value[:, -1:], least)).any(1)):
            near = np.flatnonzero(cosine[i] >= least)
            values, places = np.append(value[i], cosine[i, near]), np.append(place[i], left + near)
            best = np.argsort(-values, kind="stable")[:k]
            value[i], place[i] = values[best], places[best]
    row, column = np.nonzero(place >= 0)
    return np.stack([start + row, place[row, column]], axis=1)
