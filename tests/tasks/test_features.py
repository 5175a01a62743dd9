"""Duplicates that a hash does not find: a zoomed copy, by the features of a network and verified by registration."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from tasks.curation import DuplicateConfig
from tasks.duplicates import find_duplicates
from tasks.features import describe_picture, stack_features
from tasks.rows import search_columns


def table_of(folder: Path, pictures: dict[str, np.ndarray], config: DuplicateConfig) -> pd.DataFrame:
    rows = []
    for name, pixels in pictures.items():
        path = folder / f"{name}.png"
        Image.fromarray(pixels).save(path)
        found = search_columns(pixels, config)
        rows.append({"key": name, "uri": str(path), "frame": None, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **found})
    return pd.DataFrame(rows).astype({"key": "string", "frame": "string"})


@pytest.mark.parametrize(("cosine", "found"), [(None, []), (0.85, [("coffee", "zoomed")])])
def test_a_zoomed_copy_is_found_only_when_asked_and_strangers_never(
    tmp_path: Path, cosine: float | None, found: list[tuple[str, str]]
) -> None:
    coffee = data.coffee()
    pictures = {"coffee": coffee, "cat": data.chelsea(), "zoomed": coffee[60:340, 90:510], "rocket": data.rocket()}
    config = DuplicateConfig(semantic_cosine=cosine)
    pairs = find_duplicates(table_of(tmp_path, pictures, config), config=config, store=str(tmp_path / "store"))
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == found


def test_features_of_a_picture_are_near_those_of_its_copy() -> None:
    cat = data.chelsea()
    vectors = stack_features([describe_picture(picture) for picture in (cat, cat[::2, ::2], data.rocket())])
    assert vectors.shape == (3, 304)
    cosines = vectors @ vectors.T / 2  # two blocks of length 1
    assert cosines[0, 1] > 0.95 > 0.8 > cosines[0, 2]
