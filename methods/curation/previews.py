"""What curation did, drawn over a slide's thumbnail, for a person to look at."""

import numpy as np

from methods.curation.hashing import compiled

_KEPT, _ABNORMAL, _OUTLINE = (0, 150, 60), (213, 94, 0), (0, 114, 178)
_LEAST_TILE_PX = 12  # smaller ones cannot be told apart
_THICK_FROM_PX = 24
_MOST_PX = 2048  # of an enlarged thumbnail's longer side


def draw_tiles(thumbnail: np.ndarray, tissue: np.ndarray, boxes: np.ndarray, *, kept: np.ndarray, abnormal: np.ndarray) -> np.ndarray:
    """The thumbnail, glass paled, the tissue's outline in blue, kept tiles framed in green and abnormal ones in orange.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        tissue: (h, w) bool.
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the thumbnail.
        kept: (n,) bool; the others are not drawn.
        abnormal: (n,) bool.

    Returns:
        (H, W, 3) uint8; where tiles have less than 12 px it is enlarged by a whole factor, to 2,048 px at the most, to tell them apart.
    """
    drawn = np.asarray(boxes, float)[kept]
    tile_px = float((drawn[:, 2:] - drawn[:, :2]).min()) if len(drawn) else np.inf
    scale = max(1, min(int(np.ceil(_LEAST_TILE_PX / tile_px)), _MOST_PX // max(thumbnail.shape[:2])))
    picture = _mark(np.ascontiguousarray(thumbnail), tissue, _grown(tissue, 1 if scale > 1 else 2), np.array(_OUTLINE, np.uint8), scale)
    colours = np.where(np.asarray(abnormal, bool)[kept][:, None], _ABNORMAL, _KEPT).astype(np.uint8)
    _frame(picture, (drawn * scale).round().astype(np.int64), colours, 2 if tile_px * scale >= _THICK_FROM_PX else 1)
    return np.asarray(picture)


def _grown(mask: np.ndarray, px: int) -> np.ndarray:
    """A mask grown by its four neighbours, as often as this."""
    for _ in range(px):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


@compiled
def _mark(thumbnail: np.ndarray, tissue: np.ndarray, grown: np.ndarray, outline: np.ndarray, scale: int) -> np.ndarray:
    """The thumbnail with glass paled and the outline drawn, each of its pixels `scale` × `scale`."""
    height, width = tissue.shape
    picture = np.empty((height * scale, width * scale, 3), np.uint8)
    for y in range(height):
        row = picture[y * scale]
        for x in range(width):
            red, green, blue = thumbnail[y, x, 0], thumbnail[y, x, 1], thumbnail[y, x, 2]
            if not tissue[y, x]:
                red, green, blue = np.uint8(red // 2 + 127), np.uint8(green // 2 + 127), np.uint8(blue // 2 + 127)
                if grown[y, x]:
                    red, green, blue = outline[0], outline[1], outline[2]
            for column in range(x * scale, (x + 1) * scale):
                row[column, 0], row[column, 1], row[column, 2] = red, green, blue
        for copy in range(1, scale):
            picture[y * scale + copy] = row
    return picture


@compiled
def _frame(picture: np.ndarray, boxes: np.ndarray, colours: np.ndarray, width: int) -> None:
    """Frames in place, a pixel inside of their boxes, so that neighbours stay apart."""
    height, length = picture.shape[:2]
    for box in range(len(boxes)):
        left, top = max(boxes[box, 0] + 1, 0), max(boxes[box, 1] + 1, 0)
        right, bottom = max(min(boxes[box, 2] - 1, length), left), min(boxes[box, 3] - 1, height)
        red, green, blue = colours[box, 0], colours[box, 1], colours[box, 2]
        for y in range(top, bottom):
            rim = y < top + width or y >= bottom - width
            for x in range(left, right if rim else min(left + width, right)):
                picture[y, x, 0], picture[y, x, 1], picture[y, x, 2] = red, green, blue
            for x in range(right if rim else max(right - width, left), right):
                picture[y, x, 0], picture[y, x, 1], picture[y, x, 2] = red, green, blue
