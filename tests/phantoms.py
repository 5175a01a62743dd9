"""Generated pictures with a known answer."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, *, normal: int, abnormal: int, size_px: int = 64) -> Path:
    """Normal pictures are fine stripes; abnormal ones have a coarse, bright square in them, which their mask shows."""
    rng = np.random.default_rng(0)
    for name in ("normal", "abnormal", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(normal + abnormal):
        stripes = 90 + 30 * np.sin(np.arange(size_px) * 1.5 + rng.uniform(0, 6))
        picture = np.repeat(stripes[None, :, None], size_px, 0).repeat(3, 2) + rng.normal(0, 5, (size_px, size_px, 3))
        if number >= normal:
            mask = np.zeros((size_px, size_px), bool)
            y, x = rng.integers(4, size_px // 2 - 4, 2)
            mask[y : y + size_px // 2, x : x + size_px // 2] = True
            picture[mask] = (220, 40, 200)
            Image.fromarray(mask).save(folder / "masks" / f"picture-{number:03d}.png")
        kind = "abnormal" if number >= normal else "normal"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / kind / f"picture-{number:03d}.png")
    return folder
