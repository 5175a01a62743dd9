import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from methods.curation.stain import StainError, optical_density
from tasks.curation import StainNormalisation
from tasks.transforms import EQUALISE, apply_transform, stain_target, stain_transform


def tissue(size_px: int = 160) -> np.ndarray:
    return np.ascontiguousarray(data.immunohistochemistry()[:size_px, :size_px])


def faded(picture: np.ndarray, share: float) -> np.ndarray:
    """As a weaker staining gives it: less optical density."""
    return np.rint(256 * 10 ** (-optical_density(picture) * share) - 1).clip(0, 255).astype(np.uint8)


def target_of(folder: Path, kind: str, picture: np.ndarray | None = None) -> str:
    Image.fromarray(tissue() if picture is None else picture).save(folder / "target.png")
    return stain_target(StainNormalisation(target=str(folder / "target.png"), kind=kind))


@pytest.mark.parametrize("kind", ["macenko", "vahadane"])
def test_a_faded_slide_is_given_the_targets_strength(tmp_path: Path, kind: str) -> None:
    weak = faded(tissue(), 0.5)
    transform, trouble = stain_transform(target_of(tmp_path, kind), weak.reshape(-1, 3))
    assert trouble is None
    brought_back = apply_transform(weak, transform or "")
    truth = tissue().astype(float)
    assert np.abs(brought_back - truth).mean() < 0.3 * np.abs(weak - truth).mean()


def test_a_tile_is_transformed_by_its_slides_stains_and_not_by_its_own(tmp_path: Path) -> None:
    weak = faded(tissue(), 0.5)
    transform, _ = stain_transform(target_of(tmp_path, "macenko"), weak.reshape(-1, 3))
    whole = apply_transform(weak, transform or "")
    np.testing.assert_array_equal(apply_transform(weak[32:64, 32:64], transform or ""), whole[32:64, 32:64])


def test_the_targets_digest_and_settings_are_kept(tmp_path: Path) -> None:
    values = json.loads(target_of(tmp_path, "macenko"))
    assert values["config"]["kind"] == "macenko"
    assert len(values["target_sha256"]) == 64
    other = json.loads(target_of(tmp_path, "macenko", faded(tissue(), 0.7)))
    assert other["target_sha256"] != values["target_sha256"]
    assert other["target"]["maximum"] != values["target"]["maximum"]


def test_a_target_without_tissue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StainError, match="too few to estimate stains from"):
        target_of(tmp_path, "macenko", np.full((64, 64, 3), 250, np.uint8))


def test_pixels_whose_stains_cannot_be_told_get_no_transform_and_the_reason(tmp_path: Path) -> None:
    glass = np.full((5000, 3), 250, np.uint8)
    assert stain_transform(target_of(tmp_path, "macenko"), glass)[0] is None
    assert "too few" in (stain_transform(target_of(tmp_path, "macenko"), glass)[1] or "")
    assert "too few" in (stain_transform(target_of(tmp_path, "macenko"), np.empty((0, 3), np.uint8))[1] or "")


def test_where_no_normalisation_is_wanted_there_is_neither_transform_nor_trouble() -> None:
    assert stain_transform(None, tissue().reshape(-1, 3)) == (None, None)


def test_equalising_is_on_grey_and_gives_three_equal_channels() -> None:
    grey = np.tile(np.arange(100, 164, dtype=np.uint8), (8, 1))
    seen = apply_transform(np.repeat(grey[..., None], 3, axis=2), EQUALISE)
    assert seen.shape == (8, 64, 3)
    np.testing.assert_array_equal(seen[..., 0], seen[..., 2])
    np.testing.assert_array_equal(seen[0, :, 0], np.round(255 * np.arange(64) / 63))


def test_a_transform_of_a_later_version_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown transform.*sharpen"):
        apply_transform(tissue(16), json.dumps({"kind": "sharpen"}))
