"""Which runs tell the server that they are alive."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings


@contextmanager
def no_heartbeats() -> Iterator[None]:
    """Subflows called in here send none: the run around them does, and dies with them.

    Each flow that sends heartbeats waits up to a second at its end for the thread that sends them.
    """
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
