import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from methods.curation.duplicates import join_groups, semantic_candidates, verify_pair
from methods.curation.hashing import shrink_grey, turned

SEEDS = st.integers(0, 2**32 - 1)


def components(n: int, pairs: np.ndarray) -> np.ndarray:
    groups = [{i} for i in range(n)]
    for i, j in pairs:
        if groups[i] is not groups[j]:
            groups[i] |= groups[j]
            for member in groups[j]:
                groups[member] = groups[i]
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(min(group), len(numbers)) for group in groups], np.int64)


def test_a_copy_is_verified_and_another_picture_is_not() -> None:
    coffee, cat = (shrink_grey(image, side_px=64) for image in (data.coffee(), data.cat()))
    small = shrink_grey(data.coffee()[::3, ::3], side_px=64)
    assert verify_pair(coffee, coffee) == pytest.approx(1)
    assert verify_pair(coffee, 255 - 0.5 * (255 - small)) > 0.8
    assert verify_pair(coffee, cat) < 0.3
    assert verify_pair(coffee, turned(small, 5)) < 0.3
    assert verify_pair(coffee, turned(small, 5), turns=True) > 0.8


def test_pictures_that_cannot_be_compared_are_refused() -> None:
    ramp = np.arange(256.0).reshape(16, 16)
    with pytest.raises(ValueError, match="one shape"):
        verify_pair(ramp, ramp[:12])
    with pytest.raises(ValueError, match="square"):
        verify_pair(ramp[:12], ramp[:12], turns=True)
    with pytest.raises(ValueError, match="no structure"):
        verify_pair(ramp, np.ones((16, 16)))


@settings(deadline=None)
@given(seed=SEEDS, n=st.integers(1, 40), k=st.integers(1, 6), least=st.floats(-1, 1), block=st.integers(1, 50))
def test_semantic_candidates_are_the_nearest_by_cosine(seed: int, n: int, k: int, least: float, block: int) -> None:
    features = np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    near = {tuple(sorted((i, int(j)))) for i in range(n) for j in np.argsort(-cosine[i])[:k] if cosine[i, j] >= least}
    assert set(map(tuple, semantic_candidates(features, k=k, least_cosine=least, block=block).tolist())) == near


def test_many_equal_features_stay_connected_and_zeros_are_near_to_none() -> None:
    features = np.concatenate([np.ones((50, 3), np.float32), np.zeros((2, 3), np.float32)])
    pairs = semantic_candidates(features, k=2, least_cosine=0.9, block=16)
    assert join_groups(52, pairs).tolist() == [0] * 50 + [1, 2]
    with pytest.raises(ValueError, match="finite"):
        semantic_candidates(features * np.nan, k=2, least_cosine=0.9)


def test_groups_join_over_duplicates_lesions_and_subjects() -> None:
    pairs = np.array([[0, 3]])
    lesions = np.array(["a", "b", None, "b", None, None], object)
    subjects = np.array([1.0, 2.0, 3.0, np.nan, 3.0, np.nan])
    assert join_groups(6, pairs, lesions, subjects).tolist() == [0, 0, 1, 0, 1, 2]
    assert join_groups(6, lesions).tolist() == [0, 1, 2, 1, 3, 4]
    assert join_groups(0).tolist() == []


@given(seed=SEEDS, n=st.integers(1, 40), m=st.integers(0, 40))
def test_joined_pairs_are_connected_components(seed: int, n: int, m: int) -> None:
    pairs = np.random.default_rng(seed).integers(0, n, (m, 2))
    np.testing.assert_array_equal(join_groups(n, pairs), components(n, pairs))


def test_relations_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="expected pairs"):
        join_groups(3, np.array(["a", "b"]))
    with pytest.raises(ValueError, match="there are 3"):
        join_groups(3, np.array([[0, 3]]))
