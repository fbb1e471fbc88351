"""The mock server's state: the timeline, the payload history, the progress and the registered endpoint. No HTTP.

Whatever is due happens, in order, in the next call of :meth:`World.advance`: by a request, the sender or a test.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import threading
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .answers import State, answer
from .data import BANK, account_of, new_id
from .progress import Entity, Play, Row, accounts_of, progress_of

if TYPE_CHECKING:
    from .clock import Clock
    from .data import StatementShape
    from .models import Statement, TransactionStatus

DATE_TIME: Final = "%Y-%m-%d %H:%M:%S"
PAGE_SIZE: Final = 10
# BankConnect deletes a statement's file this long after its upload.
PDF_KEPT: Final = timedelta(days=30)

Listener = Callable[[str], None]
# How many seconds ago, or when.
Ago = float | datetime


@dataclass(frozen=True, order=True)
class _Kept:
    """One row of the history; rows of the same second keep their order of arrival."""

    stamp: datetime
    number: int
    visible: datetime = field(compare=False)
    row: Row = field(compare=False)


@dataclass(frozen=True)
class Hook:
    """A webhook that is due. A ``forged`` one is sent only by a fault; an ``untouched`` one is subject to no fault."""

    body: Row
    forged: bool = False
    untouched: bool = False


class World:
    """The records of the mock server. Safe to use from any thread."""

    def __init__(
        self,
        *,
        clock: Clock,
        seed: int,
        timezone: str,
        omits_unsent: bool,
        log: Listener,
        status: TransactionStatus = "sent",
    ) -> None:
        self.zone = _zone(timezone)
        self.seed = seed
        self.webhook_url: str | None = None
        self.webhook_mode: int | None = None
        self.hooks_due: deque[Hook] = deque()
        self.on_change: Callable[[], None] = lambda: None
        self._clock = clock
        self._omits_unsent = omits_unsent
        self._status = status
        self._log = log
        self._lock = threading.RLock()
        self._ids = random.Random(f"{seed}/ids")
        self._numbers = itertools.count()
        self._agenda: list[tuple[datetime, int, Callable[[], None]]] = []
        self._entities: dict[str, Entity] = {}
        self._links: dict[str, list[Entity]] = {}
        self._history: dict[str, list[_Kept]] = {}
        self._anchor = clock()

    # Changes

    def play(self, statement: Statement) -> Statement:
        """Add a statement to the timeline, and return it with all its ids."""
        with self._lock:
            now = self._clock()
            full = self._with_ids(statement)
            play = Play(
                full,
                full.entity_id or "",
                full.statement_id or "",
                begins=now + timedelta(seconds=min(full.after, full.begins or 0.0)),
                ends=now + timedelta(seconds=full.after),
            )
            if play.entity_id:
                entity = self._entity(play.entity_id, full.link_id)
                if play.statement_id:
                    entity.add(play)
            elif full.link_id is not None:
                self._links.setdefault(full.link_id, [])
            if full.after < 0:
                self._keep(play)
            else:
                self.at(play.begins, lambda: self._begin(play))
                self.at(play.ends, lambda: self._end(play))
        self.advance()
        self.on_change()
        return full

    def payload(self, row: Row, *, filed_under: str | None, date_time: datetime | str | None) -> None:
        """Add a raw row to the history of a link."""
        with self._lock:
            now = self._clock()
            stamp = date_time if isinstance(date_time, datetime) else now
            if stamp.tzinfo is None:
                raise ValueError("date_time must be an aware datetime, or text")
            if isinstance(date_time, str):
                with suppress(ValueError):
                    stamp = datetime.strptime(date_time, DATE_TIME).replace(tzinfo=self.zone)
            text = date_time if isinstance(date_time, str) else self._written(stamp)
            self._file(filed_under, stamp, now, {**row, "date_time": text})

    def progress(self, entity_id: str, items: Sequence[Row], analysis: str) -> None:
        """Set the progress of an analysis from now on."""
        with self._lock:
            versions = self._entity(entity_id, None).fixed_progress.setdefault(analysis, [])
            versions.append((self._clock(), [dict(item) for item in items]))

    def register(self, url: str, mode: int) -> None:
        """Register the account's one endpoint."""
        with self._lock:
            self.advance()
            self.webhook_url, self.webhook_mode = url, mode

    def webhook(self, body: Row) -> None:
        """Send a webhook with this body, without faults."""
        self.hooks_due.append(Hook(dict(body), untouched=True))
        self.on_change()

    # Time

    def at(self, when: datetime, action: Callable[[], None]) -> None:
        """Schedule an action."""
        with self._lock:
            heapq.heappush(self._agenda, (when, next(self._numbers), action))

    def advance(self) -> float | None:
        """Run all actions that are due, and return the seconds until the next one, or None."""
        with self._lock:
            now = self._clock()
            while self._agenda and self._agenda[0][0] <= now:
                heapq.heappop(self._agenda)[2]()
            return (self._agenda[0][0] - now).total_seconds() if self._agenda else None

    # Answers; ``ago`` is the age of a stale answer, or its moment

    def history(self, link_id: str | None, ago: Ago = 0.0) -> list[Row]:
        """Return the rows of a link, newest first. Without a link: of all links; BankConnect does not document it."""
        with self._lock:
            self.advance()
            if link_id:
                kept = self._history.get(link_id, [])
            else:
                kept = sorted(itertools.chain.from_iterable(self._history.values()))
            moment = self._moment(ago)
            return [one.row for one in reversed(kept) if one.visible <= moment]

    def knows_link(self, link_id: str) -> bool:
        """Return whether the link has an entity, a row or a login."""
        return link_id in self._links or link_id in self._history

    def state(
        self, entity_id: str, analysis: str, account_id: str | None = None, ago: Ago = 0.0, *, only: int | None = None
    ) -> State | None:
        """Return what the answer of one analysis depends on, or None for an unknown entity.

        :param account_id: the account that the request asks for; not every analysis is filtered by it.
        :param only: leave out the statements of all accounts but the one of this number.
        """
        with self._lock:
            self.advance()
            entity = self._entities.get(entity_id)
            if entity is None:
                return None
            if only is not None:
                entity = entity.only(only)
            now = self._moment(ago)
            items = progress_of(entity, analysis, now, self._status)
            return State(
                analysis=analysis,
                entity_id=entity_id,
                account_id=account_id,
                progress=json.dumps(items),
                accounts=accounts_of(entity, analysis, items, now, self._anchor),
                seed=self.seed,
                anchor=self._anchor,
            )

    def analysis(self, entity_id: str, analysis: str, account_id: str | None, ago: Ago = 0.0) -> Row | None:
        """Return the whole answer of one analysis with blank links, or None for an unknown entity."""
        state = self.state(entity_id, analysis, account_id, ago)
        return None if state is None else answer(state)

    def pdfs(self, entity_id: str, link: Callable[[str], str], ago: Ago = 0.0) -> list[Row] | None:
        """Return the uploaded files of an entity, or None for an unknown entity. ``link`` makes a statement's link."""
        with self._lock:
            entity = self._entities.get(entity_id)
            if entity is None:
                return None
            now = self._moment(ago)
            uploaded: dict[str, Play] = {}
            for play in entity.plays:
                if play.begins <= now:
                    uploaded.setdefault(play.statement_id, play)
        return [
            {
                "statement_id": statement_id,
                "account_id": account_of(self.seed, entity_id, entity.account_of(statement_id))["account_id"],
                "bank_name": BANK,
                "pdf_url": link(statement_id) if now < play.begins + PDF_KEPT else "",
                "pdf_password": play.statement.pdf_password,
            }
            for statement_id, play in uploaded.items()
        ]

    def pdf(self, entity_id: str, statement_id: str) -> StatementShape | None:
        """Return the statement whose uploaded file can be fetched now, or None."""
        with self._lock:
            entity, now = self._entities.get(entity_id), self._clock()
            if entity is None:
                return None
            of_account = entity.plays_of(entity.account_of(statement_id))
            uploads = (play.begins for play in of_account if play.statement_id == statement_id and play.begins <= now)
            uploaded = next(uploads, None)
            return None if uploaded is None or now >= uploaded + PDF_KEPT else entity.shape_of(statement_id)

    def entities(self, link_id: str | None) -> list[Row]:
        """Return all entities, or those of a link."""
        with self._lock:
            found = self._entities.values() if link_id is None else self._links.get(link_id, [])
            return [_entity_row(entity) for entity in found]

    def entity(self, entity_id: str) -> Row | None:
        """Return one entity, or None."""
        entity = self._entities.get(entity_id)
        return None if entity is None else _entity_row(entity)

    # Helpers

    def _moment(self, ago: Ago) -> datetime:
        return ago if isinstance(ago, datetime) else self._clock() - timedelta(seconds=ago)

    def _with_ids(self, statement: Statement) -> Statement:
        entities = self._links.get(statement.link_id or "")
        if statement.entity_id is not None:
            entity_id = statement.entity_id
        else:
            entity_id = entities[0].entity_id if entities else new_id(self._ids)
        known = self._entities.get(entity_id)
        ids: Row = {"entity_id": entity_id}
        if statement.statement_id is None:
            ids["statement_id"] = new_id(self._ids)
        if statement.link_id is None and known is not None and statement.mode == "online":
            ids["link_id"] = known.link_id
        if statement.reason is None and statement.progress == "failed":
            login = statement.statement_id == ""
            ids["reason"] = "Incorrect user ID or password" if login else "The statement could not be read"
        return statement.model_copy(update=ids)

    def _entity(self, entity_id: str, link_id: str | None) -> Entity:
        entity = self._entities.setdefault(entity_id, Entity(entity_id, link_id))
        if link_id is not None:
            entity.link_id = entity.link_id or link_id
            of_link = self._links.setdefault(link_id, [])
            if entity not in of_link:
                of_link.append(entity)
        return entity

    def _begin(self, play: Play) -> None:
        if play.ends > play.begins:
            self.hooks_due.append(Hook({**_body(play), "progress": "completed", "reason": ""}, forged=True))
        self.on_change()

    def _end(self, play: Play) -> None:
        statement = play.statement
        who = f"link {statement.link_id!r}" if statement.link_id else f"entity {play.entity_id!r}"
        what = f"statement {play.statement_id!r}" if play.statement_id else "login"
        reason = f" ({statement.reason})" if statement.reason else ""
        unsent = None
        if self.webhook_url is None:
            unsent = "no endpoint is registered"
        elif statement.mode == "pdf" and self.webhook_mode != 1:
            unsent = f"webhook_mode {self.webhook_mode} suppresses those of manual uploads"
        self._log(f"{who}: {what} {statement.progress}{reason}" + (f"; no webhook: {unsent}" if unsent else ""))
        if unsent is None:
            self.hooks_due.append(Hook(_body(play)))
        if unsent is None or not self._omits_unsent:
            self._keep(play)
        self.on_change()

    def _keep(self, play: Play) -> None:
        row = {**_body(play), "date_time": self._written(play.ends)}
        self._file(play.statement.link_id, play.ends, play.ends, row)

    def _file(self, link_id: str | None, stamp: datetime, visible: datetime, row: Row) -> None:
        if link_id is not None:
            second = stamp.astimezone(UTC).replace(microsecond=0)
            insort(self._history.setdefault(link_id, []), _Kept(second, next(self._numbers), visible, row))

    def _written(self, when: datetime) -> str:
        return when.astimezone(self.zone).strftime(DATE_TIME)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError(f"timezone: {name!r} is unknown; give an IANA name, such as Asia/Kolkata") from None


def _body(play: Play) -> Row:
    return {
        "entity_id": play.entity_id,
        "statement_id": play.statement_id,
        "link_id": play.statement.link_id,
        "progress": play.statement.progress,
        "reason": play.statement.reason or "",
    }


def _entity_row(entity: Entity) -> Row:
    return {"entity_id": entity.entity_id, "link_id": entity.link_id, "meta_data": {}}
