"""Textures that scikit-image ships, cut into windows of which no pixel is in two."""

import numpy as np
import pytest
from skimage import data

from storage.datasets.textures import TextureSource, list_texture
from storage.frames import read_frame
from storage.images import UnreadableImageError


def windows(texture: str, split: str | None) -> list[np.ndarray]:
    items = list_texture(TextureSource.model_validate({"texture": texture}))
    return [read_frame(item.uri, item.frame or "", sha256="a") for item in items if item.split == split]


@pytest.mark.parametrize("texture", ["brick", "grass", "gravel", "tissue"])
def test_the_left_half_trains_and_the_right_half_is_held_out_without_a_pixel_of_both(texture: str) -> None:
    picture = data.immunohistochemistry() if texture == "tissue" else np.repeat(getattr(data, texture)()[..., None], 3, 2)
    training, held_out = windows(texture, "train"), windows(texture, None)
    assert np.array_equal(np.concatenate(training), picture[:, :256])
    rows = [np.concatenate(held_out[4 * row : 4 * row + 4], axis=1) for row in range(8)]
    assert np.array_equal(np.concatenate(rows), picture[:, 256:])


def test_every_window_is_normal_and_a_subject_of_its_own() -> None:
    items = list_texture(TextureSource(texture="brick"))
    assert len({item.subject_id for item in items}) == len(items) == 36
    assert {(item.label, item.dataset) for item in items} == {(0, "texture brick")}


@pytest.mark.parametrize("frame", ["64x64:64", "0x64:0", "64:0", "windows:0"])
def test_a_window_that_there_is_not_is_refused(frame: str) -> None:
    uri = list_texture(TextureSource(texture="brick"))[0].uri
    with pytest.raises(UnreadableImageError):
        read_frame(uri, frame, sha256="a")
