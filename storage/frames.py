"""Pictures inside files, named by the file and "array:index": MedMNIST .npz, CIFAR-10, SVHN .mat, MNIST's .csv.gz, windows of a PNG.

Layouts: MedMNIST https://medmnist.com, CIFAR-10 https://www.cs.toronto.edu/~kriz/cifar.html, SVHN http://ufldl.stanford.edu/housenumbers.
"""

import gzip
import io
import math
import pickle
import shutil
import tempfile
import zipfile
import zlib
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from storage import filesystems
from storage.images import UnreadableImageError, read_image

_CIFAR_SIDE_PX = 32
_CIFAR_PIXEL_BYTES = 3 * _CIFAR_SIDE_PX**2
_REMEMBERED = 4  # arrays; those of .npz are mapped from a temporary file, the others at most 0.3 GB (SVHN's train part)
_COPY_BYTES = 1 << 20
# all that a pickled array of bytes consists of; anything else in a pickle could run code
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
_BROKEN = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    RuntimeError,  # includes NotImplementedError
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    MatReadError,
)
_decoding = Lock()


def read_frame(uri: str, frame: str, *, sha256: str) -> NDArray[np.uint8]:
    """Read one picture of a container.

    Args:
        uri: the container.
        frame: "array:index", such as "train_images:17"; an item's `frame`.
        sha256: of the container's content, or anything else that changes with it: what is remembered of the file counts for it alone.

    Returns:
        (H, W, 3) uint8, RGB; grey is repeated.

    Raises:
        UnreadableImageError: no such array or index, an array that holds no 8-bit pictures, or a damaged container.
        OSError: The file itself could not be opened or read.
    """
    picture = _find(uri, frame, sha256)
    return np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else np.array(picture)


def frame_size(uri: str, frame: str, *, sha256: str) -> tuple[int, int]:
    """Look up (width_px, height_px) of what `read_frame` would give; arguments and errors are the same."""
    height_px, width_px = _find(uri, frame, sha256).shape[:2]
    return width_px, height_px


def read_array(uri: str, name: str) -> NDArray[Any]:
    """Read an array of a container: pictures (N, H, W) or (N, H, W, 3) uint8, labels (N,) or (N, L) of integers.

    Names are "data" and "labels" in CIFAR-10's files, "X" and "y" in SVHN's, "digits" and "labels" in MNIST's, and their own in .npz.
    In a .png "64x32" is its windows of 64 × 32 px (width × height), row by row; what is left over at right and below is in none.

    Raises:
        UnreadableImageError: no such array, or a damaged container.
    """
    lower = filesystems.name_of(uri).lower()
    kinds = {".npz": _read_npz, ".mat": _read_svhn, ".bin": _read_cifar_binary, ".csv.gz": _read_digits, ".png": _read_windows}
    read = next((read for suffix, read in kinds.items() if lower.endswith(suffix)), _read_cifar_pickle)
    try:
        return read(uri, name)
    except UnreadableImageError:
        raise
    except KeyError as error:
        raise UnreadableImageError(f"{uri}: there is no array {error} in it") from error
    except OSError as error:
        if error.errno is not None:  # the file system's own
            raise
        raise UnreadableImageError(f"{uri}: unreadable container ({error})") from error
    except _BROKEN as error:
        raise UnreadableImageError(f"{uri}: unreadable container ({type(error).__name__}: {error})") from error


def _find(uri: str, frame: str, sha256: str) -> NDArray[np.uint8]:
    """The picture as it is stored, (H, W) or (H, W, 3)."""
    name, separator, index = frame.rpartition(":")
    if not (separator and name and index.isdecimal()):
        raise UnreadableImageError(f"{uri}: expected a frame like 'train_images:17', got {frame!r}")
    with _decoding:  # else every thread decodes the same file
        pictures = _remember(uri, name, sha256)
    if int(index) >= len(pictures):
        raise UnreadableImageError(f"{uri}: there is no frame {frame}, {name} holds {len(pictures)}")
    return pictures[int(index)]


@lru_cache(maxsize=_REMEMBERED)
def _remember(uri: str, name: str, sha256: str) -> NDArray[np.uint8]:
    pictures = read_array(uri, name)
    if pictures.dtype != np.uint8 or not (pictures.ndim == 3 or (pictures.ndim == 4 and pictures.shape[3] == 3)):
        raise UnreadableImageError(f"{uri}: expected {name} to be (N, H, W) or (N, H, W, 3) uint8, got {pictures.shape} {pictures.dtype}")
    return pictures


def _read_npz(uri: str, name: str) -> NDArray[Any]:
    """Map the array from a temporary file, which goes with the array: the largest of MedMNIST+ has 16 GB."""
    with filesystems.open_for_reading(uri) as file, zipfile.ZipFile(file) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise KeyError(name)
        with archive.open(f"{name}.npy") as member, tempfile.NamedTemporaryFile(suffix=".npy") as unpacked:
            shutil.copyfileobj(member, unpacked, _COPY_BYTES)
            unpacked.flush()
            return np.load(unpacked.name, mmap_mode="r", allow_pickle=False)


def _read_svhn(uri: str, name: str) -> NDArray[Any]:
    values = scipy.io.loadmat(io.BytesIO(filesystems.read_bytes(uri)), variable_names=[name])[name]
    return np.moveaxis(values, 3, 0) if values.ndim == 4 else values.ravel()  # X (32, 32, 3, N), y (N, 1)


def _read_cifar_binary(uri: str, name: str) -> NDArray[Any]:
    rows = np.frombuffer(filesystems.read_bytes(uri), np.uint8).reshape(-1, 1 + _CIFAR_PIXEL_BYTES)
    return {"labels": rows[:, 0], "data": _from_planes(rows[:, 1:])}[name]


def _read_cifar_pickle(uri: str, name: str) -> NDArray[Any]:
    content = _ByteArrays(io.BytesIO(filesystems.read_bytes(uri)), encoding="bytes").load()
    value = content[name.encode()] if name.encode() in content else content[name]
    return _from_planes(value) if name == "data" else np.asarray(value, np.int64)


def _read_digits(uri: str, name: str) -> NDArray[Any]:
    """Rows of comma-separated pixels, the digit last."""
    with filesystems.open_for_reading(uri) as file:
        rows = pd.read_csv(file, header=None, dtype=np.uint8, compression="gzip").to_numpy()
    side_px = math.isqrt(rows.shape[1] - 1)
    return {"labels": rows[:, -1], "digits": rows[:, :-1].reshape(-1, side_px, side_px)}[name]


def _read_windows(uri: str, name: str) -> NDArray[Any]:
    width_px, _, height_px = name.partition("x")
    if not (width_px.isdecimal() and height_px.isdecimal() and int(width_px) and int(height_px)):
        raise KeyError(name)
    with filesystems.open_for_reading(uri) as file:
        picture = read_image(file)
    width, height = int(width_px), int(height_px)
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    grid = picture[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
    return grid.swapaxes(1, 2).reshape(rows * columns, height, width, 3)


def _from_planes(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 3072), red, green and blue planes, to (N, 32, 32, 3)."""
    return rows.reshape(-1, 3, _CIFAR_SIDE_PX, _CIFAR_SIDE_PX).transpose(0, 2, 3, 1)


class _ByteArrays(pickle.Unpickler):
    """Reads NumPy arrays in plain containers, and refuses every other class or function."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is not admitted: CIFAR-10's files hold arrays of bytes alone")
        return super().find_class(module_name, global_name)
