"""Who works on a store: a small file that its holder renews, and that others may take over when it is not renewed any more.

Times are those of the machines' clocks: they may differ by less than the lease lasts. The lease keeps two runs from doing the same work;
that nothing is damaged where it fails to do so is the store's own doing (whole shards, conditional writes, equal bits).
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from storage import conditional
from storage.patience import can_pass, patiently

logger = logging.getLogger(__name__)

LEASE_S = 60.0  # how long a holder that was killed on another machine keeps others waiting
_PATIENCE_S = 30.0


class LeaseHeldError(RuntimeError):
    """Somebody else works on the store."""


class LeaseLostError(RuntimeError):
    """The lease was taken over because it had not been renewed in time."""


class Lease:
    """A lease that is held. Get one with `hold_lease`."""

    def __init__(self, uri: str, record: dict[str, Any], version: str, lease_s: float) -> None:
        self._uri = uri
        self._record = record
        self._version = version
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._lost: str | None = None
        self._ended = threading.Event()

    def check(self) -> None:
        """Return while the lease is held; one that could not be renewed in time is renewed or given up now.

        Raises:
            LeaseLostError: somebody else has taken over; says who.
            ConnectionError: it has run out, and whether somebody else has taken over cannot be known.
        """
        if self._lost is None and time.time() > self._record["expires_at"]:
            self._renew()
        if self._lost is not None:
            raise LeaseLostError(self._lost)

    def keep(self) -> None:
        """Renew until `end`: the body of the holder's thread."""
        while not self._ended.wait(self._lease_s / 4) and self._lost is None:
            try:
                self._renew()
            except Exception as error:
                if not can_pass(error):
                    logger.exception("the lease %s cannot be renewed", self._uri)
                else:
                    logger.warning("the lease %s is not renewed: %s", self._uri, error)

    def end(self) -> None:
        """Give it back, so that the next one need not wait."""
        self._ended.set()
        with self._lock:
            if self._lost is None:
                try:
                    conditional.replace(self._uri, _encode({**self._record, "expires_at": 0.0}), self._version)
                except (conditional.ConflictError, OSError) as error:
                    logger.warning("the lease %s is not given back and runs out by itself: %s", self._uri, error)

    def _renew(self) -> None:
        with self._lock:
            if self._ended.is_set() or self._lost is not None:
                return
            record = {**self._record, "expires_at": time.time() + self._lease_s}
            try:
                self._version = conditional.replace(self._uri, _encode(record), self._version)
            except conditional.ConflictError:
                record, self._version = _read(self._uri)
                if record["nonce"] != self._record["nonce"]:
                    self._lost = f"the lease {self._uri} was not renewed in time and is {_describe(record)}"
                    return
                # an earlier renewal arrived, and its answer did not
            self._record = record


@contextmanager
def hold_lease(uri: str, holder: dict[str, Any], *, lease_s: float = LEASE_S) -> Iterator[Lease]:
    """Hold a lease while the context lasts, renewed by a thread.

    It is taken over from a holder that has not renewed it in time, or whose process on this host is dead.

    Args:
        uri: of the lease's file, local or in a bucket.
        holder: what others are told beside host, process and times, such as a flow run's name.
        lease_s: how long it lasts without being renewed.

    Raises:
        LeaseHeldError: names host, process, since when, and when it runs out.
    """
    record = {**holder, **_identity(), "nonce": uuid.uuid4().hex, "since": time.time(), "expires_at": time.time() + lease_s}
    version = patiently(lambda: _take(uri, record), patience_s=_PATIENCE_S, what=uri)
    lease = Lease(uri, record, version, lease_s)
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.end()
        thread.join()


def _take(uri: str, record: dict[str, Any]) -> str:
    try:
        found, version = _read(uri)
    except FileNotFoundError:
        try:
            return conditional.create(uri, _encode(record))
        except FileExistsError:
            found, version = _read(uri)  # somebody was faster
    if found["nonce"] == record["nonce"]:
        return version  # taken by an earlier try whose answer was lost
    if found["expires_at"] > time.time() and not _is_dead(found):
        raise LeaseHeldError(f"{uri.rpartition('/')[0]} is {_describe(found)}")
    try:
        return conditional.replace(uri, _encode(record), version)
    except conditional.ConflictError:
        raise LeaseHeldError(f"{uri.rpartition('/')[0]} is {_describe(_read(uri)[0])}") from None


def _read(uri: str) -> tuple[dict[str, Any], str]:
    content, version = conditional.read(uri)
    return json.loads(content), version


def _describe(record: dict[str, Any]) -> str:
    known = ("host", "pid", "started", "space", "nonce", "since", "expires_at")
    more = "".join(f", {name} {value}" for name, value in record.items() if name not in known)
    return (
        f"held by process {record['pid']} on {record['host']}{more} since {_moment(record['since'])}; "
        f"it goes on renewing it, else the lease runs out at {_moment(record['expires_at'])}"
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _identity() -> dict[str, Any]:
    return {"host": socket.gethostname(), "space": _process_space(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _is_dead(record: dict[str, Any]) -> bool:
    """Whether the holder was a process of this host that no longer runs; False for processes that cannot be seen from here."""
    if record["space"] != _process_space():
        return False
    try:
        process = psutil.Process(record["pid"])
        # a process number is given again; the time at which it began is not. A zombie is dead: in a container often nobody takes note
        return process.status() == psutil.STATUS_ZOMBIE or bool(abs(process.create_time() - record["started"]) > 1)
    except psutil.NoSuchProcess:
        return True


def _process_space() -> str:
    """Where a process number means the same process: this boot of this machine, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=2, sort_keys=True).encode() + b"\n"
