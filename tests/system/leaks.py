"""Searches the files and tables of an Airflow home for secrets, in many encodings."""

from __future__ import annotations

import base64
import html
import json
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from cryptography.fernet import Fernet
from homes import FERNET_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from homes import Home

# At DEBUG, the InProcessTestSupervisor of `airflow dags test` prints each secret that Airflow or a hook gives to the
# masker. A worker's supervisor leaves the body out.
GIVEN_TO_THE_MASKER = re.compile(rb"^.*Sending request .*loc=supervisor\.py:\d+ msg=MaskSecret\(.*$", re.MULTILINE)
# A part of a key of this length counts as a leak: the text may have been cut off.
PART = 12


@dataclass(frozen=True, order=True)
class Leak:
    """A finding: which secret, in which form, in which file or ``table x``, and the text around it."""

    name: str
    form: str
    where: str
    around: str = field(default="", compare=False)


def find_leaks(home: Home, secrets: dict[str, str]) -> set[Leak]:
    """Search all files and all rows of a home."""
    return leaks_in(haystacks(home), secrets)


def leaks_in(hays: Iterable[tuple[str, bytes]], secrets: dict[str, str]) -> set[Leak]:
    """Search named byte strings."""
    wanted = [(name, form, needle) for name, value in secrets.items() for form, needle in forms(value)]
    return {
        Leak(name, form, where, _around(hay, needle))
        for where, hay in hays
        for name, form, needle in wanted
        if needle in hay
    }


def forms(secret: str) -> Iterator[tuple[str, bytes]]:
    """Yield a secret in many encodings."""
    raw = secret.encode()
    ways: dict[str, set[str | bytes]] = {
        "plain": {secret},
        "beginning": {secret[:PART]},
        "end": {secret[-PART:]},
        "base64": {
            text.translate(alphabet) for text in _in_base64(raw) for alphabet in ({}, str.maketrans("+/", "-_"))
        },
        "percent": {quote(secret, safe=""), quote(secret), quote_plus(secret)},
        "json": {
            _inside(json.dumps(secret)),
            _inside(json.dumps(_inside(json.dumps(secret)))),
            _inside(json.dumps(secret)).replace("/", "\\/"),
            re.sub(r"[<>&']", lambda found: f"\\u{ord(found[0]):04x}", _inside(json.dumps(secret))),
        },
        "repr": {_inside(repr(secret)), _inside(repr(raw))[1:]},
        "html": {html.escape(secret)},
        "hex": {raw.hex(), raw.hex().upper()},
    }
    ways["percent"] |= {re.sub("%..", lambda found: found[0].lower(), text) for text in ways["percent"]}
    for form, texts in ways.items():
        for text in texts:
            if form == "plain" or text != secret:
                yield form, text if isinstance(text, bytes) else text.encode()


def haystacks(home: Home) -> Iterator[tuple[str, bytes]]:
    """Yield all files, with the raw database and its journals, and all rows of all tables."""
    for name, hay in files_in(home.folder):
        yield name, GIVEN_TO_THE_MASKER.sub(b"", hay) if name.startswith("output-") else hay
    for table, columns, row in rows(home):
        yield from of_row(table, dict(zip(columns, row, strict=True)), home.environment["AIRFLOW__CORE__FERNET_KEY"])


def files_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield all files below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def of_row(table: str, row: Mapping[str, object], fernet_key: str) -> Iterator[tuple[str, bytes]]:
    """Yield a row, and for a trigger its decrypted arguments too."""
    yield f"table {table}", b"\n".join(_as_bytes(value) for value in row.values())
    if table == "trigger":
        yield "table trigger", decrypted(str(row["kwargs"]), fernet_key)


def rows(home: Home) -> Iterator[tuple[str, list[str], tuple[object, ...]]]:
    """Yield every row of every table."""
    with closing(sqlite3.connect(home.database)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            cursor = database.execute(f'select * from "{table}"')  # noqa: S608 - names from the database itself
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                yield table, columns, row


def decrypted(kwargs: str, key: str = FERNET_KEY) -> bytes:
    """Return the arguments of a trigger as the triggerer reads them; Airflow does not always encrypt them."""
    return kwargs.encode() if kwargs.startswith("{") else Fernet(key).decrypt(kwargs)


def _as_bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode("utf-8", "surrogateescape")


def _around(hay: bytes, needle: bytes) -> str:
    at = hay.index(needle)
    return hay[max(0, at - 300) : at + len(needle) + 100].decode("utf-8", "replace")


def _inside(quoted: str) -> str:
    return quoted[1:-1]


def _in_base64(raw: bytes) -> Iterator[str]:
    """Yield the part that does not depend on the bytes before and after, for each of three alignments."""
    for offset, skipped in enumerate((0, 2, 3)):
        text = base64.b64encode(b"\0" * offset + raw).decode()
        yield text[skipped : (offset + len(raw)) * 8 // 6]
