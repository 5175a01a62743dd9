"""What can pass is waited for: an object store that restarts, a network that is gone for a minute."""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

R = TypeVar("R")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 10.0
_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_ERRNOS = (errno.EBUSY, errno.EREMOTEIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT)  # the first two are s3fs's 503 and 500
# raised by file objects and Zarr, past what `storage.filesystems` explains; by name, so that nothing is imported for it
_FROM_CLIENTS = {
    "botocore": ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "HTTPClientError"),
    "aiohttp": ("ClientError", "ClientPayloadError", "ClientConnectionError", "ServerDisconnectedError", "ServerTimeoutError"),
    "obstore": ("GenericError",),
}


def can_pass(error: BaseException) -> bool:
    """Whether waiting may mend it: no connection, no answer in time, or a server that says 5xx; never a file that is not there."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and not isinstance(error, _PERMANENT):
        # s3fs makes an EIO of any other answer; a disk's own EIO has no cause and does not pass
        return error.errno in _ERRNOS or (error.errno == errno.EIO and _is_5xx(error.__cause__))
    room, name = type(error).__module__.partition(".")[0], type(error).__name__
    return name in _FROM_CLIENTS.get(room, ()) or _is_5xx(error)


def patiently(call: Callable[[], R], *, patience_s: float, what: str = "") -> R:
    """Call until it succeeds, fails for good, or what can pass has not passed in time.

    Args:
        call: can be repeated.
        patience_s: after so long since the first try the error is raised; the waits before double from 0.2 s to 10 s, with jitter.
        what: is being tried, for the log.
    """
    started, wait_s = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return call()
        except Exception as error:
            left_s = started + patience_s - time.monotonic()
            if not can_pass(error) or left_s <= 0:
                raise
            pause_s = min(wait_s * random.uniform(0.5, 1.5), left_s)
            logger.warning("%s: %s; tried again in %.1f s, for %.0f s more", what or "a store does not answer", error, pause_s, left_s)
            time.sleep(pause_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _is_5xx(error: BaseException | None) -> bool:
    """A botocore ClientError with such an answer."""
    answer = getattr(error, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return isinstance(status, int) and status >= 500
