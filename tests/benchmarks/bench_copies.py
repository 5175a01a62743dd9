"""Which copies the duplicate finder finds: `pytest -m benchmark -s tests/benchmarks/bench_copies.py`, or run it as a script.

Windows of the photographs that scikit-image ships, no two of which overlap, and of each a copy that was changed in one way. A copy is found
if it is in its original's group; a mistake is a group with two originals. By the rules of curation, one configuration a column: the
default, with flips and quarter turns, and with pretrained features. Windows of one photograph are more alike than those of two. Takes ten
minutes of the processor.
"""

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from skimage import data

from methods.curation.duplicates import join_groups
from storage import filesystems
from tasks.curation import DuplicateConfig
from tasks.duplicates import find_duplicates
from tasks.rows import search_columns

WINDOW_PX, WINDOWS = 224, 10  # of each photograph at the most
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "moon", "immunohistochemistry", "retina", "brick", "grass", "gravel")
CONFIGS = {"default": DuplicateConfig(), "turned": DuplicateConfig(turned=True), "semantic": DuplicateConfig(semantic_cosine=0.9)}
Change = Callable[[Image.Image], Image.Image]


def recompress(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def crop(picture: Image.Image, share: float) -> Image.Image:
    margin = round(share * picture.width / 2)
    return picture.crop((margin, margin, picture.width - margin, picture.height - margin))


def stamp(picture: Image.Image) -> Image.Image:
    stamped = picture.copy()
    ImageDraw.Draw(stamped).text((8, 8), "2024-05-17 14:03", fill="yellow")
    return stamped


CHANGES: dict[str, Change] = {
    "JPEG of quality 50": lambda picture: recompress(picture, 50),
    "JPEG of quality 15": lambda picture: recompress(picture, 15),
    "half the size": lambda picture: picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC),
    "twice the size": lambda picture: picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC),
    "darker by a third": lambda picture: ImageEnhance.Brightness(picture).enhance(0.67),
    "contrast 1.3": lambda picture: ImageEnhance.Contrast(picture).enhance(1.3),
    "a date in the corner": stamp,
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "cropped by 2 %": lambda picture: crop(picture, 0.02),
    "cropped by 10 %": lambda picture: crop(picture, 0.1),
    "cropped by 30 %": lambda picture: crop(picture, 0.3),
    "turned by 2 degrees": lambda picture: picture.rotate(2, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)),
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "a quarter turn": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
}


def cut_windows() -> list[Image.Image]:
    windows = []
    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(getattr(data, name)()).convert("RGB")
        across, down = (side // WINDOW_PX for side in photograph.size)
        corners = [(WINDOW_PX * x, WINDOW_PX * y) for y in range(down) for x in range(across)]
        places = np.linspace(0, len(corners) - 1, min(WINDOWS, len(corners))).astype(int)
        windows += [photograph.crop((x, y, x + WINDOW_PX, y + WINDOW_PX)) for x, y in (corners[place] for place in places)]
    return windows


def tabulate(pictures: list[Image.Image], folder: Path, config: DuplicateConfig) -> pd.DataFrame:
    """As `find_duplicates` takes them; without those that have no structure to hash."""
    rows = []
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        uri = str(folder / f"{number}.png")
        picture.save(uri)
        digest = filesystems.sha256_of(uri)
        found = search_columns(np.asarray(picture), config)
        rows.append({"key": f"{number}-{digest}", "uri": uri, "frame": None, "sha256": digest, "number": number, **found})
    return pd.DataFrame(rows).dropna(subset="phash").astype(dict.fromkeys(("key", "phash"), "string")).reset_index(drop=True)


def count_found(originals: list[Image.Image], change: Change, config: DuplicateConfig, folder: Path) -> tuple[int, int, int]:
    """Copies found, copies there are, and originals that share a group with another."""
    table = tabulate([*originals, *map(change, originals)], folder, config)
    pairs = find_duplicates(table, config=config, store=str(folder / "store"))
    place = pd.Series(table.index, table["key"])
    group = join_groups(len(table), np.stack([place[pairs["first"]], place[pairs["second"]]], axis=1).reshape(-1, 2))
    of_original, of_copy = (pd.Series(group[rows], table["number"][rows] % len(originals)) for rows in split_rows(table, len(originals)))
    both = of_original.index.intersection(of_copy.index)
    return int((of_original[both] == of_copy[both]).sum()), len(originals), int(of_original.duplicated(keep=False).sum())


def split_rows(table: pd.DataFrame, originals: int) -> tuple[np.ndarray, np.ndarray]:
    is_original = (table["number"] < originals).to_numpy()
    return np.flatnonzero(is_original), np.flatnonzero(~is_original)


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_print_which_copies_are_found() -> None:
    originals = cut_windows()
    print(f"\n{len(originals)} windows of {len(PHOTOGRAPHS)} photographs: copies found (originals joined with another)")  # noqa: T201
    print(f"{'':<24}" + "".join(f"{name:>18}" for name in CONFIGS))  # noqa: T201
    numbers: dict[str, dict[str, tuple[int, int, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for place, (change_name, change) in enumerate(CHANGES.items()):
            numbers[change_name] = {
                name: count_found(originals, change, config, Path(folder) / f"{place}-{name}") for name, config in CONFIGS.items()
            }
            cells = (f"{found / there:6.1%} ({joined})" for found, there, joined in numbers[change_name].values())
            print(f"{change_name:<24}" + "".join(f"{cell:>18}" for cell in cells), flush=True)  # noqa: T201
    print(json.dumps({"benchmark": "copies", "load": os.getloadavg()[0], "found": numbers}))  # noqa: T201


if __name__ == "__main__":
    test_print_which_copies_are_found()
