"""What the writers of miniatures share."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def in_folder(path: Path) -> Path:
    """The same path; the folder that it is in exists afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_jpeg(path: Path, image: NDArray[np.uint8], *, quality: int = 92) -> None:
    """A picture (H, W, 3) as JPEG."""
    Image.fromarray(image).save(path, quality=quality)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file of a header and rows."""
    with in_folder(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A CSV file of rows by column, all with the columns of the first."""
    write_table(path, list(rows[0]), [[row.get(column, "") for column in rows[0]] for row in rows])
    return path


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A text file."""
    path.write_text("".join(f"{line}\n" for line in lines))
