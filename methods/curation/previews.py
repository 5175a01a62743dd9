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
    picture = _mark(np.ascontiguousarray(thumbnail), tissue, _grown(tissue, 1 if scale > 1 else 2), np.array(_OUTLINE, np.uint8))
    if scale > 1:
        picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    colours = np.where(np.asarray(abnormal, bool)[kept][:, None], _ABNORMAL, _KEPT).astype(np.uint8)
    _frame(picture, (drawn * scale).round().astype(np.int64), colours, 2 if tile_px * scale >= _THICK_FROM_PX else 1)
    return np.asarray(picture)


def _grown(mask: np.ndarray, px: int) -> np.ndarray:
    """A mask grown by its four neighbours, as often as this."""
    for _ in range(px):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


@compiled
def _mark(thumbnail: np.ndarray, tissue: np.ndarray, grown: np.ndarray, outline: np.ndarray) -> np.ndarray:
    picture = thumbnail.copy()
    for y in range(tissue.shape[0]):
        for x in range(tissue.shape[1]):
            if grown[y, x] and not tissue[y, x]:
                picture[y, x] = outline
            elif not tissue[y, x]:
                for channel in range(3):
                    picture[y, x, channel] = picture[y, x, channel] // 2 + 127
    return picture


@compiled
def _frame(picture: np.ndarray, boxes: np.ndarray, colours: np.ndarray, width: int) -> None:
    """Frames in place, a pixel inside of their boxes, so that neighbours stay apart."""
    height, length = picture.shape[:2]
    for box in range(len(boxes)):
        left, top = max(boxes[box, 0] + 1, 0), max(boxes[box, 1] + 1, 0)
        right, bottom = min(boxes[box, 2] - 1, length), min(boxes[box, 3] - 1, height)
        for y in range(top, bottom):
            rim = y < top + width or y >= bottom - width
            for x in range(left, right):
                if rim or x < left + width or x >= right - width:
                    picture[y, x] = colours[box]
