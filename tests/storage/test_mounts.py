"""Whether a path leads to a disk or to a server."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from storage import mounts

MOUNTED = (
    ("/dev/nvme0n1p1", "/", "ext4"),
    ("overlay", "/containers/layer", "overlay"),
    ("tmpfs", "/memory", "tmpfs"),
    ("server:/export/archive", "/data", "nfs4"),
    ("//server/share", "/share", "cifs"),
    ("/dev/fuse", "/bucket", "fuse.s3fs"),
    ("server@tcp:/lustre", "/lustre", "lustre"),
    ("/dev/sdb1", "/data/disk", "xfs"),
)


@pytest.fixture(autouse=True)
def _mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [SimpleNamespace(device=device, mountpoint=place, fstype=kind) for device, place, kind in MOUNTED]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: found)
    mounts._mounts.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def _forgotten_afterwards() -> object:
    yield
    mounts._mounts.cache_clear()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/pictures/one.jpg", True),
        ("file:///pictures/one.jpg", True),
        ("/containers/layer/one.jpg", True),
        ("/memory/one.jpg", True),
        ("/data/disk/one.jpg", True),
        ("/data/one.jpg", False),
        ("/share/one.jpg", False),
        ("/bucket/one.jpg", False),
        ("/lustre/deep/one.jpg", False),
        ("s3://bucket/one.jpg", False),
    ],
)
def test_a_file_is_on_a_disk_or_behind_a_network_by_the_nearest_mount_above_it(uri: str, expected: bool) -> None:
    assert mounts.is_on_disk(uri) == expected


def test_a_link_is_followed_to_where_its_picture_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("/data")
    assert not mounts.is_on_disk(str(tmp_path / "link" / "one.jpg"))
