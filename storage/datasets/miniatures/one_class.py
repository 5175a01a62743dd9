"""Miniatures of the one-class benchmarks in the containers in which they are downloaded: stripes whose direction and colour say the class.

Every writer fills `folder` with a clean download; tests spoil it themselves. Equal seeds give equal files.
"""

import io
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io
from numpy.typing import NDArray

from storage.datasets.miniatures.files import in_folder

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MAT_TEXT = 116  # bytes at the head of a .mat file for people to read


def small_pictures(labels: Sequence[int], *, size_px: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """(N, size_px, size_px, 3): stripes whose direction and colour say the class, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size_px, :size_px]
    pictures = []
    for label in labels:
        stripes = np.sin((x * np.cos(label * 0.3) + y * np.sin(label * 0.3)) * 0.8 + rng.uniform(0, 6))[..., None]
        tint = np.array([(label * 53) % 128, (label * 91) % 128, (label * 29) % 128])
        pictures.append(60 + tint + 40 * stripes + rng.normal(0, 6, (size_px, size_px, 3)))
    return np.stack(pictures).clip(0, 255).astype(np.uint8)


def write_cifar10(folder: Path, *, per_batch: int = 20, version: str = "py", seed: int = 0) -> Path:
    """Both published forms: "py" (pickles as Python 2 wrote them) or "bin"; five training batches and one of tests."""
    rng = np.random.default_rng(seed)
    target = folder / f"cifar-10-batches-{version}"
    target.mkdir(parents=True)
    batches = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(batches):
        labels = _in_turn(rng, per_batch)
        planes = small_pictures(labels, seed=seed + number).transpose(0, 3, 1, 2).reshape(per_batch, -1)  # (N, 3072)
        if version == "bin":
            (target / f"{name}.bin").write_bytes(np.hstack([np.array(labels, np.uint8)[:, None], planes]).tobytes())
            continue
        of = "testing batch 1 of 1" if name == "test_batch" else f"training batch {number + 1} of 5"
        names = [f"{CIFAR_CLASSES[label]}_s_{index:06d}.png".encode() for index, label in enumerate(labels)]
        content = {b"batch_label": of.encode(), b"labels": labels, b"data": planes, b"filenames": names}
        (target / name).write_bytes(pickle_as_python_2(content))
    (target / ("batches.meta.txt" if version == "bin" else "readme.html")).write_text("\n".join(CIFAR_CLASSES))
    return folder


def pickle_as_python_2(value: Any) -> bytes:
    """Protocol 2 with byte strings and NumPy's module as they were then."""
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(value)
    content = stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert not any(opcode.name.startswith("BINUNICODE") for opcode, _, _ in pickletools.genops(content))
    return content


class _Python2Pickler(pickle._Pickler):
    """Writes bytes and text alike as Python 2's byte strings."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_text(self, value: bytes | str) -> None:
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[bytes] = dispatch[str] = save_text


def write_svhn(folder: Path, *, train: int = 40, test: int = 20, seed: int = 0) -> Path:
    """train_32x32.mat and test_32x32.mat: X (32, 32, 3, N) uint8, y (N, 1) with 10 for the digit zero."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        digits = np.array(_in_turn(rng, count))
        pictures = small_pictures(digits.tolist(), seed=seed + count).transpose(1, 2, 3, 0)
        labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
        path = folder / f"{name}_32x32.mat"
        scipy.io.savemat(path, {"X": pictures, "y": labels}, do_compression=True)
        path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(_MAT_TEXT) + path.read_bytes()[_MAT_TEXT:])  # without the time of day
    return folder


def write_medmnist(
    path: Path,
    *,
    counts: Mapping[str, int] | None = None,
    classes: int = 2,
    colour: bool = False,
    columns: int = 1,
    size_px: int = 28,
    seed: int = 0,
) -> Path:
    """An .npz as MedMNIST's: {train, val, test}_images (N, H, W[, 3]) uint8 and _labels (N, columns); more columns are findings, 0 or 1."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[np.uint8]] = {}
    for part, count in (counts or {"train": 12, "val": 6, "test": 8}).items():
        labels = rng.permutation(np.arange(count) % classes)[:, None] if columns == 1 else (rng.random((count, columns)) < 0.2)
        pictures = small_pictures(labels.sum(axis=1).tolist(), size_px=size_px, seed=seed + count)
        arrays |= {f"{part}_images": pictures if colour else pictures[..., 0], f"{part}_labels": labels.astype(np.uint8)}
    np.savez_compressed(in_folder(path), **arrays)  # type: ignore[arg-type]
    return path


def _in_turn(rng: np.random.Generator, count: int) -> list[int]:
    """Labels in an order drawn anew for every ten pictures, which show each class once."""
    return [int(label) for _ in range(-(-count // 10)) for label in rng.permutation(10)][:count]
