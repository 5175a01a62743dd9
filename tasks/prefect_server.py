"""Prefect's own server, whose SQLite transactions wait for one another: `python -m tasks.prefect_server server start --port …`.

SQLite refuses at once, whatever its time-out, a transaction that has read and now wants to write when another one wrote in between
(SQLITE_BUSY_SNAPSHOT). Prefect opens most of its writing transactions that way, answers 503, and the client tries again two seconds later:
several times in a run that only looks up cached results. A transaction that asks for the write lock first (BEGIN IMMEDIATE) waits
milliseconds instead.

And with SQLAlchemy from 2.1 on, whose bulk inserts ask a hybrid property what they are to do with its value, Prefect's scheduler fails on
`state` of the runs that it inserts, in its log only: no schedule fires. Before, such values were passed over, which is said here.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import set_database_config
from prefect.server.database.orm_models import FlowRun, TaskRun
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class PatientSqlite(AioSqliteConfiguration):
    """Prefect's configuration of SQLite, with every explicit transaction an immediate one."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin with the write lock, whether the caller asked for it or not."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def pass_over_states() -> None:
    """Let bulk inserts of runs leave their states alone, which Prefect inserts by itself afterwards."""
    for run in (FlowRun, TaskRun):
        hybrid = run.__dict__["state"]
        if getattr(hybrid, "bulk_dml_setter", None) is None:
            hybrid.bulk_dml_setter = lambda _run, _values, _state: None


def main() -> None:
    """Make Prefect fit SQLAlchemy, set the configuration where the database is SQLite, then be `prefect`."""
    pass_over_states()
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if url is not None and url.startswith("sqlite"):
        set_database_config(PatientSqlite(connection_url=url))
    app()


if __name__ == "__main__":
    main()
