"""What curation did, drawn over a slide's thumbnail, for a person to look at."""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

_KEPT, _ABNORMAL, _OUTLINE = (0, 150, 60), (213, 94, 0), (0, 114, 178)
_ENLARGED_PX = 1600


def draw_tiles(thumbnail: np.ndarray, tissue: np.ndarray, boxes: np.ndarray, *, kept: np.ndarray, abnormal: np.ndarray) -> np.ndarray:
    """The thumbnail, glass paled, the tissue's outline in blue, kept tiles framed in green and abnormal ones in orange.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        tissue: (h, w) bool.
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the thumbnail.
        kept: (n,) bool; the others are not drawn.
        abnormal: (n,) bool.

    Returns:
        (H, W, 3) uint8, enlarged to 1,600 px at the longer side where it is smaller, so that tiles can be told apart.
    """
    scale = max(1, round(_ENLARGED_PX / max(thumbnail.shape[:2])))
    picture = Image.fromarray(thumbnail)
    glass = Image.fromarray(~tissue)
    picture.paste(picture.point([level // 2 + 127 for level in range(256)] * 3), mask=glass)
    around = ndimage.binary_dilation(tissue, iterations=1 if scale > 1 else 2) & ~tissue
    picture.paste(_OUTLINE, (0, 0, *picture.size), Image.fromarray(around))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for box, of_abnormal in zip(boxes[kept] * scale, abnormal[kept], strict=True):
        x0, y0, x1, y1 = (float(side) for side in box)
        pen.rectangle((x0 + 1, y0 + 1, x1 - 2, y1 - 2), outline=_ABNORMAL if of_abnormal else _KEPT, width=2)
    return np.asarray(picture)
