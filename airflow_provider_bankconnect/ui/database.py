"""Reading Airflow's database for the page: with a time limit, and without changing anything."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from airflow.utils.session import create_session
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

# A slow query ends after this, and its part of the page says so.
QUERY_SECONDS: Final = 5


@contextmanager
def reading() -> Iterator[Session]:
    """Open a session whose queries end after five seconds, where the database can end them.

    :raises sqlalchemy.exc.SQLAlchemyError: the database cannot be read, or a query takes longer.
    """
    with create_session(scoped=False) as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text(f"SET LOCAL statement_timeout = '{QUERY_SECONDS}s'"))
        yield session
