"""One picture, whatever it is kept in: a file of its own (Pillow's formats, DICOM) or a frame of a file that holds many."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage import dicom, filesystems, frames, images


def read_picture(uri: str, *, frame: str | None, sha256: str) -> NDArray[np.uint8]:
    """Read a picture, (H, W, 3) uint8 RGB; see `decode_picture`."""
    if frame is not None:
        return frames.read_frame(uri, frame, sha256=sha256)
    with filesystems.open_whole(uri) as file:
        return dicom.read_dicom(file) if is_dicom(uri) else images.read_image(file)


def decode_picture(uri: str, *, frame: str | None, sha256: str) -> Image.Image:
    """Decode a picture as it is meant to be seen.

    Args:
        uri: the file.
        frame: "array:index" in a file that holds many; None for a file that is one picture.
        sha256: the file's digest; a file that was replaced is not taken for the one that was read before.

    Returns:
        of mode RGB.

    Raises:
        UnreadableImageError: damaged, too large, no such frame.
        OSError: the file is not there or does not answer.
    """
    if frame is not None or is_dicom(uri):
        return Image.fromarray(read_picture(uri, frame=frame, sha256=sha256))
    with filesystems.open_whole(uri) as file:
        return images.decode_image(file)


def is_dicom(uri: str) -> bool:
    """Whether the name says DICOM."""
    return uri.lower().endswith((".dcm", ".dicom"))
