"""What curation did, drawn over a slide's thumbnail, for a person to look at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from methods.curation.hashing import compiled

Colour = tuple[int, int, int]

_NORMAL, _ABNORMAL, _UNKNOWN = (0, 150, 60), (213, 94, 0), (240, 228, 66)
_TISSUE, _MARKS = (0, 114, 178), (0, 0, 0)
_LEAST_TILE_PX = 12  # smaller ones cannot be told apart
_THICK_FROM_PX = 24
_MOST_PX = 2048  # of an enlarged thumbnail's longer side
_LINE_PX, _LETTERS_PX, _SWATCH_PX, _GAP_PX = 24, 14, 12, 8  # of the legend


def draw_tiles(
    thumbnail: np.ndarray, tissue: np.ndarray, boxes: np.ndarray, *, kept: np.ndarray, labels: np.ndarray, marks: np.ndarray | None = None
) -> np.ndarray:
    """The thumbnail, glass paled, the tissue's outline in blue, that of what is marked in black, kept tiles framed by their label.

    Normal tiles are green, abnormal ones orange, unknown ones yellow. A legend below says so and counts them.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        tissue: (h, w) bool.
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the thumbnail.
        kept: (n,) bool; the others are not drawn.
        labels: (n,) float, 0 normal, 1 abnormal, NaN unknown.
        marks: (h, w) bool, what is outlined or masked as abnormal.

    Returns:
        (H, W, 3) uint8; where tiles have less than 12 px the thumbnail is enlarged by a whole factor, to 2,048 px at the most, to tell them
        apart. The legend's lines lie below it.
    """
    drawn, labels = np.asarray(boxes, float)[kept], np.asarray(labels, float)[kept]
    tile_px = float((drawn[:, 2:] - drawn[:, :2]).min()) if len(drawn) else np.inf
    scale = max(1, min(int(np.ceil(_LEAST_TILE_PX / tile_px)), _MOST_PX // max(thumbnail.shape[:2])))
    line_px = 1 if scale > 1 else 2
    colours, entries = np.empty((len(drawn), 3), np.uint8), []
    for colour, what, of in (
        (_NORMAL, "normal", labels == 0),
        (_ABNORMAL, "abnormal", labels == 1),
        (_UNKNOWN, "unknown", np.isnan(labels)),
    ):
        colours[of] = colour
        if of.any():
            entries.append((colour, f"{int(of.sum())} {what}"))
    entries.append((_TISSUE, "tissue"))
    outlines = (_grown(tissue, line_px) & ~tissue).astype(np.uint8)
    if marks is not None and marks.any():
        outlines[marks & ~_shrunk(marks, line_px)] = 2
        entries.append((_MARKS, "marked as abnormal"))
    palette = np.array([(0, 0, 0), _TISSUE, _MARKS], np.uint8)
    picture = _mark(np.ascontiguousarray(thumbnail), tissue, outlines, palette, scale)
    _frame(picture, (drawn * scale).round().astype(np.int64), colours, 2 if tile_px * scale >= _THICK_FROM_PX else 1)
    return np.concatenate([picture, _legend(entries, picture.shape[1])])


def _legend(entries: Sequence[tuple[Colour, str]], width_px: int) -> np.ndarray:
    """(h, width_px, 3): a swatch and a word for each entry, on as many lines as it takes."""
    font = ImageFont.load_default(_LETTERS_PX)
    places, x, y = [], _GAP_PX, 0
    for colour, text in entries:
        length = _SWATCH_PX + _GAP_PX + round(font.getlength(text)) + 2 * _GAP_PX
        if x > _GAP_PX and x + length > width_px:
            x, y = _GAP_PX, y + _LINE_PX
        places.append((x, y, colour, text))
        x += length
    lines = Image.new("RGB", (width_px, y + _LINE_PX), (255, 255, 255))
    draw = ImageDraw.Draw(lines)
    for x, y, colour, text in places:
        top = y + (_LINE_PX - _SWATCH_PX) // 2
        draw.rectangle((x, top, x + _SWATCH_PX - 1, top + _SWATCH_PX - 1), fill=colour, outline=(90, 90, 90))
        draw.text((x + _SWATCH_PX + _GAP_PX, y + _LINE_PX // 2), text, fill=(0, 0, 0), font=font, anchor="lm")
    return np.asarray(lines)


def _shrunk(mask: np.ndarray, px: int) -> np.ndarray:
    return ~_grown(~mask, px)


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
def _mark(thumbnail: np.ndarray, tissue: np.ndarray, outlines: np.ndarray, palette: np.ndarray, scale: int) -> np.ndarray:
    """The thumbnail with glass paled and outlines (0: none) in the palette's colours, each of its pixels `scale` × `scale`."""
    height, width = tissue.shape
    picture = np.empty((height * scale, width * scale, 3), np.uint8)
    for y in range(height):
        row = picture[y * scale]
        for x in range(width):
            red, green, blue = thumbnail[y, x, 0], thumbnail[y, x, 1], thumbnail[y, x, 2]
            if not tissue[y, x]:
                red, green, blue = np.uint8(red // 2 + 127), np.uint8(green // 2 + 127), np.uint8(blue // 2 + 127)
            if outlines[y, x]:
                red, green, blue = palette[outlines[y, x], 0], palette[outlines[y, x], 1], palette[outlines[y, x], 2]
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
