import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from skimage import data
from sklearn.linear_model import Lasso

from methods.curation.stain import StainConfig, StainError, Stains, concentrations, estimate_stains, normalise, optical_density

HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.09, 0.95, 0.28])
KINDS = pytest.mark.parametrize("kind", ["macenko", "vahadane"])


def stains(*rows: np.ndarray, maximum: tuple[float, float] = (0.8, 0.5)) -> Stains:
    return Stains(np.stack([row / np.linalg.norm(row) for row in rows]), np.array(maximum))


def mixed(known: Stains, *, side_px: int = 128, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    """A picture of nuclei, stroma and some of both, a quarter glass: (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    h = rng.uniform(0.25, 1.02, (side_px, side_px, 2)) * known.maximum
    kind = rng.integers(0, 8, (side_px, side_px))
    h[kind < 3, 1] = 0  # haematoxylin alone
    h[(kind >= 3) & (kind < 5), 0] = 0  # eosin alone
    h[kind >= 6] = 0  # glass
    picture = 256 * 10 ** -(h @ known.matrix) - 1 + rng.normal(0, noise, (side_px, side_px, 3))
    return picture.round().clip(0, 255).astype(np.uint8)


def estimate(image: np.ndarray, kind: str, **changes: object) -> Stains:
    return estimate_stains(image.reshape(-1, 3), StainConfig(kind=kind, **changes), np.random.default_rng(0))


def angles_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((a * b).sum(axis=1), -1, 1)))


@KINDS
def test_the_stains_of_a_known_mixture_are_found_haematoxylin_first(kind: str) -> None:
    known = stains(HAEMATOXYLIN, EOSIN)
    found = estimate(mixed(known), kind)
    assert angles_deg(found.matrix, known.matrix).max() < 2
    np.testing.assert_allclose(found.maximum, known.maximum, rtol=0.05)


@KINDS
def test_the_stains_are_unit_vectors_without_negative_entries(kind: str) -> None:
    found = estimate(data.immunohistochemistry(), kind)
    np.testing.assert_allclose(np.linalg.norm(found.matrix, axis=1), 1)
    assert found.matrix.min() >= 0
    assert found.matrix[0, 0] > found.matrix[1, 0]


@KINDS
def test_a_picture_normalised_onto_itself_hardly_changes(kind: str) -> None:
    image = data.immunohistochemistry()
    own = estimate(image, kind)
    again = normalise(image, own, own, StainConfig(kind=kind))
    assert np.abs(again.astype(int) - image).mean() < 3


@KINDS
def test_a_recoloured_picture_is_brought_back(kind: str) -> None:
    target = stains(HAEMATOXYLIN, EOSIN)
    other = stains(np.array([0.55, 0.75, 0.35]), np.array([0.25, 0.85, 0.45]), maximum=(1.2, 0.4))
    expected, recoloured = mixed(target, noise=0), mixed(other, noise=0)  # the same drawing in two stainings
    config = StainConfig(kind=kind)
    brought_back = normalise(recoloured, estimate(recoloured, kind), estimate(expected, kind), config)
    before, after = (np.abs(picture.astype(int) - expected).mean() for picture in (recoloured, brought_back))
    assert after < 3 < 10 < before


@KINDS
def test_glass_remains_nearly_white(kind: str) -> None:
    image = data.immunohistochemistry()
    glass = np.full((4, 4, 3), 243, np.uint8)
    painted = normalise(glass, estimate(image, kind), stains(HAEMATOXYLIN, EOSIN), StainConfig(kind=kind))
    assert painted.min() > 225  # the target's haematoxylin is twice as strong, and so is the haze on the glass
    assert np.ptp(painted[0, 0].astype(int)) < 16


def test_the_estimate_is_the_same_for_equal_generators_and_close_for_others() -> None:
    pixels, config = data.immunohistochemistry().reshape(-1, 3), StainConfig(most_pixels=5_000)
    first, again, other = (estimate_stains(pixels, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.matrix, again.matrix)
    assert angles_deg(first.matrix, other.matrix).max() < 2


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of λ = 0, where it is accurate enough
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), sparsity=st.sampled_from([0.0, 0.01, 0.1, 0.8]))
def test_the_closed_form_of_concentrations_is_the_lasso_of_scikit_learn(seed: int, sparsity: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0, 1, (2, 3)) + np.eye(2, 3)
    matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    density = rng.uniform(-0.2, 1.5, (6, 3))
    alpha = max(sparsity / np.log(10) / 3, 1e-12)  # scikit-learn divides the squared error by the three samples
    lasso = Lasso(alpha=alpha, positive=True, fit_intercept=False, tol=1e-9, max_iter=100_000)
    expected = [lasso.fit(matrix.T, v).coef_ for v in density]
    np.testing.assert_allclose(concentrations(density, matrix, sparsity=sparsity), expected, atol=1e-4)


def test_the_dictionary_is_no_worse_than_the_true_stains_by_vahadanes_objective() -> None:
    known = stains(HAEMATOXYLIN, EOSIN)
    density = optical_density(mixed(known).reshape(-1, 3))
    density = density[np.linalg.norm(density, axis=1) >= 0.15].astype(np.float64)

    def objective(matrix: np.ndarray) -> float:
        h = concentrations(density, matrix, sparsity=0.1)
        return float(0.5 * np.square(density - h @ matrix).sum() + 0.1 / np.log(10) * h.sum())

    macenko, vahadane = (estimate(mixed(known), kind) for kind in ("macenko", "vahadane"))
    assert objective(vahadane.matrix) <= min(objective(macenko.matrix), objective(known.matrix))


@pytest.mark.parametrize("level", [255, 243, 236])
def test_a_tile_without_tissue_is_refused(level: int) -> None:
    glass = np.random.default_rng(0).normal(level, 1.5, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    with pytest.raises(StainError, match="too few"):
        estimate(glass, "macenko")


@KINDS
@pytest.mark.parametrize("colour", [(210, 140, 180), (110, 80, 150), (120, 70, 40), (0, 0, 0), (128, 128, 128)])
@pytest.mark.parametrize("noise", [0, 4])
def test_a_tile_of_one_colour_is_refused(kind: str, colour: tuple[int, int, int], noise: float) -> None:
    picture = np.array(colour) + np.random.default_rng(0).normal(0, noise, (64, 64, 3))
    with pytest.raises(StainError, match="one colour only"):
        estimate(picture.clip(0, 255).astype(np.uint8), kind)


def test_stains_survive_json() -> None:
    known = estimate(data.immunohistochemistry(), "macenko")
    again = Stains.from_dict(json.loads(json.dumps(known.to_dict())))
    np.testing.assert_array_equal(again.matrix, known.matrix)
    np.testing.assert_array_equal(again.maximum, known.maximum)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"matrix": [[1, 0, 0]], "maximum": [1, 1]},
        {"matrix": [[1, 0, 0], [0, 2, 0]], "maximum": [1, 1]},
        {"matrix": [[1, 0, 0], [0, -1, 0]], "maximum": [1, 1]},
        {"matrix": [[1, 0, 0], [0, 1, 0]], "maximum": [1, 0]},
        {"matrix": [[float("nan"), 0, 0], [0, 1, 0]], "maximum": [1, 1]},
        {"matrix": "pink", "maximum": [1, 1]},
    ],
)
def test_a_damaged_description_of_stains_is_refused(values: dict) -> None:
    with pytest.raises(StainError, match="expected"):
        Stains.from_dict(values)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3), np.uint8), np.zeros((9, 4), np.uint8), np.zeros((9, 3))])
def test_other_pixels_than_rgb_bytes_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(StainError, match="expected pixels"):
        estimate_stains(pixels, StainConfig(), np.random.default_rng(0))
    with pytest.raises(StainError, match="expected a picture"):
        normalise(pixels.astype(float), stains(HAEMATOXYLIN, EOSIN), stains(HAEMATOXYLIN, EOSIN), StainConfig())


def test_an_unknown_kind_or_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind"):
        StainConfig(kind="reinhard")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="lamda"):
        StainConfig(lamda=0.1)  # type: ignore[call-arg]
