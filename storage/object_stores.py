"""Buckets through obstore: bulk data and conditional writes at a multiple of s3fs's rate.

Keys, region and endpoint are found as s3fs finds them, in the environment or AWS's files, so that both reach the same place. What obstore
raises becomes OSErrors: ConnectionError where waiting may help, PermissionError where it does not.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

CONNECT_TIMEOUT_S = 2
READ_TIMEOUT_S = 3  # until an answer begins, and between its pieces: a server that stalls is asked again
_WRITE_TIMEOUT_S = 15  # until a piece of 5 MiB is acknowledged: enough for a line of 12 Mbit/s with four of them under way
_REQUEST_TIMEOUT_S = 120
_RETRIED_S = 20  # inside obstore; `storage.patience` tries again above it
_CREDENTIALS_LAST = timedelta(minutes=10)


class Bucket(NamedTuple):
    """Two clients of one prefix: a stalled read is given up early, a long write is not."""

    reader: Any
    writer: Any


def is_object_store(uri: str) -> bool:
    """Whether obstore takes it."""
    return uri.startswith(("s3://", "s3a://"))


def open_bucket(uri: str) -> Bucket:
    """Clients whose paths are relative to the URI, kept for the process as long as the environment names the same keys and endpoint.

    Raises:
        PermissionError: no credentials are found.
    """
    bucket, _, prefix = uri.split("://", 1)[1].strip("/").partition("/")
    return _open(bucket, prefix, tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))))


def open_object(uri: str) -> tuple[Bucket, str]:
    """Clients of the whole bucket, and the path of an object in it: files of many folders share their connections.

    Raises:
        PermissionError: no credentials are found.
    """
    bucket, _, path = uri.split("://", 1)[1].partition("/")
    return open_bucket(f"s3://{bucket}"), path


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what obstore raises into PermissionError, FileExistsError or ConnectionError that name the place."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("obstore"):
            raise
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        match type(error).__name__:
            case "PermissionDeniedError" | "UnauthenticatedError":
                raise PermissionError(f"{uri}: the object store gives no access ({text})") from error
            case "AlreadyExistsError":
                raise FileExistsError(f"{uri} is there already") from error
            case "GenericError":
                raise ConnectionError(f"{uri}: the object store does not answer ({text})") from error
        raise


@lru_cache(maxsize=64)
def _open(bucket: str, prefix: str, _environment: tuple[tuple[str, str], ...]) -> Bucket:
    import botocore.session
    from obstore.store import S3Store

    session = botocore.session.get_session()
    credentials = session.get_credentials()
    if credentials is None:
        raise PermissionError(f"s3://{bucket}/{prefix}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")

    def provide() -> Any:
        keys = credentials.get_frozen_credentials()
        expires_at = datetime.now(UTC) + _CREDENTIALS_LAST
        return {"access_key_id": keys.access_key, "secret_access_key": keys.secret_key, "token": keys.token, "expires_at": expires_at}

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    places = {"endpoint": endpoint or session.get_scoped_config().get("endpoint_url"), "region": session.get_config_variable("region")}
    config: Any = {name: value for name, value in places.items() if value}
    clients = [
        S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            client_options={
                "allow_http": True,
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                "read_timeout": timedelta(seconds=read_timeout_s),
                "timeout": timedelta(seconds=_REQUEST_TIMEOUT_S),
            },
            retry_config={
                "max_retries": 10,
                "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
                "retry_timeout": timedelta(seconds=_RETRIED_S),
            },
            credential_provider=provide,
        )
        for read_timeout_s in (READ_TIMEOUT_S, _WRITE_TIMEOUT_S)
    ]
    return Bucket(*clients)
