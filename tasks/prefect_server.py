"""Prefect's own server, whose SQLite transactions wait for one another: `python -m tasks.prefect_server server start --port …`.

SQLite refuses at once, whatever its time-out, a transaction that has read and now wants to write when another one wrote in between
(SQLITE_BUSY_SNAPSHOT). Prefect opens most of its writing transactions that way, answers 503, and the client tries again two seconds later:
several times in a run that only looks up cached results. A transaction that asks for the write lock first (BEGIN IMMEDIATE) waits
milliseconds instead.

Where stderr is a file, as it is when a command starts the server, that log is kept short.
"""

import os
import stat
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import set_database_config
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

from tasks.server import cut_log

_SECONDS_BETWEEN_LOOKS = 30


class PatientSqlite(AioSqliteConfiguration):
    """Prefect's configuration of SQLite, with every explicit transaction an immediate one."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin with the write lock, whether the caller asked for it or not."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def _keep_short(log: Path) -> None:
    while True:
        cut_log(log)
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def main() -> None:
    """Set the configuration where the database is SQLite, then be `prefect`."""
    if stat.S_ISREG(os.fstat(2).st_mode):
        threading.Thread(target=_keep_short, args=(Path("/proc/self/fd/2").readlink(),), daemon=True).start()
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if url is not None and url.startswith("sqlite"):
        set_database_config(PatientSqlite(connection_url=url))
    app()


if __name__ == "__main__":
    main()
