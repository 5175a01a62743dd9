"""What lies behind a path: a disk of this machine, or a server."""

from functools import cache
from pathlib import Path

import psutil

from storage import filesystems

_WITHOUT_DEVICE = ("overlay", "tmpfs", "ramfs", "rootfs", "zfs")  # of this machine as well: containers' layers, memory, pools


def is_on_disk(uri: str) -> bool:
    """Whether a file is on a disk or in the memory of this machine, rather than behind a network (NFS, SMB, Lustre, FUSE) or a bucket.

    Mounts are looked at once a process.
    """
    path = filesystems.local_path(uri)
    if path is None:
        return False
    mounts = _mounts()
    folder = next((parent for parent in path.resolve().parents if str(parent) in mounts), None)
    return folder is not None and mounts[str(folder)]


@cache
def _mounts() -> dict[str, bool]:
    """Whether on a disk, by where it is mounted; of several on one place the last one is seen."""
    return {part.mountpoint: _is_disk(part.device, part.fstype) for part in psutil.disk_partitions(all=True)}


def _is_disk(device: str, kind: str) -> bool:
    return kind in _WITHOUT_DEVICE or (Path(device).is_absolute() and not kind.startswith("fuse.") and not device.startswith("//"))
