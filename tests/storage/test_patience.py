"""What is waited for, and what fails at once."""

import errno
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from obstore.exceptions import GenericError

from storage.patience import can_pass, patiently


def _answer(status: int) -> ClientError:
    return ClientError({"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]


def _from_s3fs(status: int) -> OSError:
    error = OSError(errno.EIO, "no match")
    error.__cause__ = _answer(status)
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (EndpointConnectionError(endpoint_url="x"), True),
        (GenericError("no route"), True),
        (_answer(503), True),
        (_from_s3fs(502), True),
        (_answer(403), False),
        (_from_s3fs(400), False),
        (FileNotFoundError(errno.ENOENT, "x"), False),
        (PermissionError("x"), False),
        (OSError(errno.EIO, "a bad block of a disk"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError("x"), False),
    ],
)
def test_what_waiting_mends_is_told_from_what_it_does_not(error: BaseException, passes: bool) -> None:
    assert can_pass(error) == passes


def test_a_call_is_repeated_with_growing_waits_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, calls = list[float](), list[int]()
    monkeypatch.setattr(time, "sleep", waits.append)

    def call() -> str:
        calls.append(1)
        if len(calls) < 9:
            raise ConnectionError("gone")
        return "there"

    assert patiently(call, patience_s=1000) == "there"
    assert len(waits) == 8
    assert all(0.5 * min(0.2 * 2**n, 10) <= wait <= 1.5 * min(0.2 * 2**n, 10) for n, wait in enumerate(waits))


@pytest.mark.parametrize("error", [FileNotFoundError("x"), ValueError("x")])
def test_what_does_not_pass_is_raised_at_once(error: Exception) -> None:
    calls = list[int]()

    def call() -> Any:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        patiently(call, patience_s=1000)
    assert len(calls) == 1


def test_patience_ends() -> None:
    def call() -> Any:
        raise TimeoutError("stalled")

    with pytest.raises(TimeoutError, match="stalled"):
        patiently(call, patience_s=0.3)
