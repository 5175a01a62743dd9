"""Preprocessing of radiographs: histogram equalisation and the central crop of Tuluptceva et al. (2020), section 4.1."""

import numpy as np


def equalise(image: np.ndarray) -> np.ndarray:
    """Spread the grey levels so that each is as frequent as any other, as far as 256 levels can.

    Level v becomes round(255 (cdf(v) − cdf_min) / (N − cdf_min)), with the counts cdf of levels up to v (Gonzalez and Woods, Digital image
    processing, section 3.3). A picture of one level stays as it is.

    Args:
        image: (H, W) uint8 grey; windowed already.

    Returns:
        (H, W) uint8; the lowest level present is 0, the highest 255.

    Raises:
        ValueError: not such a picture.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"expected a grey picture (H, W) uint8 that is not empty, got {image.shape} {image.dtype}; window and convert it first"
        )
    cdf = np.bincount(image.ravel(), minlength=256).cumsum()
    lowest = cdf[image.min()]
    if lowest == image.size:
        return image.copy()
    levels = np.round(255 * (cdf - lowest) / (image.size - lowest)).clip(0, 255).astype(np.uint8)
    return np.asarray(levels[image])


def central_crop(width_px: int, height_px: int, *, share: float = 0.75) -> tuple[int, int, int, int]:
    """The box x, y, width, height in pixels around the centre that keeps `share` of each side (rounded; at least one pixel).

    Raises:
        ValueError: sides below 1, or a share outside (0, 1].
    """
    if min(width_px, height_px) < 1 or not 0 < share <= 1:
        raise ValueError(f"expected sides of 1 px and more and a share in (0, 1], got {width_px} × {height_px} px and {share}")
    width, height = max(round(width_px * share), 1), max(round(height_px * share), 1)
    return (width_px - width) // 2, (height_px - height) // 2, width, height
