"""The links that a task is given: a list, an iterator, or a file of one id a line in an object storage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any, Final, NamedTuple

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_bankconnect.arguments import check_id
from airflow_provider_bankconnect.storage import filesystem

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://.", re.IGNORECASE)
_PIECE_BYTES: Final = 64 * 1024
# What an object store is asked for at once: s3fs alone would keep 50 MiB in memory.
_BLOCK_BYTES: Final = 2**20
# BankConnect's links have up to 500 characters, of up to four bytes each.
_LONGEST_LINE: Final = 4096
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_HINT: Final = (
    "if a template renders the list, set render_template_as_native_obj=True on the DAG. A file with one id a line is "
    "given by its URL, such as s3://aws_default@bucket/links.txt or file:///data/links.txt"
)


class BadId(NamedTuple):
    """What stands in the place of an id: ``where`` it is, and what is wrong with it."""

    where: str
    problem: str


class IdsOfIterator:
    """An iterator in an argument of an operator. It can be read once.

    Airflow serializes arguments as text at each parsing of the DAG. The text of an iterator has a memory address, which
    would make each parsing another version of the DAG.
    """

    def __init__(self, ids: Iterator[Any]) -> None:
        self._ids = ids
        self._is_used = False
        self._name = getattr(ids, "__qualname__", type(ids).__qualname__)

    def __repr__(self) -> str:
        return f"<ids of {self._name}>"

    def __deepcopy__(self, memo: object) -> IdsOfIterator:
        """Return itself: an iterator cannot be copied, and copies of a DAG only look at it."""
        return self

    def __length_hint__(self) -> int:
        return length_hint(self._ids)

    def __iter__(self) -> Iterator[Any]:
        if self._is_used:
            raise ValueError(
                f"link_ids: the iterator {self._name} was used up by an earlier try in this process: give a list, a "
                "file, or an object whose __iter__ begins anew"
            )
        self._is_used = True
        return self._ids


class LinkIds:
    """The ids of the links of a task, each of them once.

    The ids of a list are checked when it is made, those of an iterator or a file when they are read: then a
    :class:`BadId` stands for one that is invalid.

    :param given: the argument ``link_ids`` of a task, rendered.
    :raises ValueError: it is no list of ids, no iterator and no URL; names ``link_ids``.
    """

    def __init__(self, given: object) -> None:
        self._file: IdFile | None = None
        self._ids: Iterable[str | BadId]
        self._expected: int | None = None
        if isinstance(given, ObjectStoragePath) or (isinstance(given, str) and _URL.match(given)):
            self._ids = self._file = IdFile(given)
        elif isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            raise ValueError(f"link_ids must be a list of link ids, not {type(given).__name__}: {_HINT}")
        elif isinstance(given, Iterator | IdsOfIterator):
            self._ids = _checked(given)
            self._expected = length_hint(given) or None
        else:
            self._ids = list(dict.fromkeys(check_id("link_ids", one) for one in given))
            self._expected = len(self._ids)

    @property
    def expected(self) -> int | None:
        """How many ids there are; of a file, about how many. None if that is not known."""
        return self._file.expected if self._file else self._expected

    @property
    def is_counted(self) -> bool:
        """Whether the number that is expected is not only estimated."""
        return self._file is None

    def __iter__(self) -> Iterator[str | BadId]:
        if isinstance(self._ids, list):
            yield from self._ids
            return
        seen: set[str] = set()
        for one in self._ids:
            if isinstance(one, BadId):
                yield one
            elif one not in seen:
                seen.add(one)
                yield one


def keep_iterator(link_ids: Any) -> Any:  # noqa: ANN401 - an argument of any type
    """Return the argument ``link_ids`` in a form that Airflow can serialize."""
    return IdsOfIterator(link_ids) if isinstance(link_ids, Iterator) else link_ids


def _checked(given: Iterable[object]) -> Iterator[str | BadId]:
    for number, one in enumerate(given, start=1):
        # The lines of a file come with their ends, and columns of fixed width with blanks.
        yield _id_or_bad(f"item {number}", one.strip() if isinstance(one, str) else one)


def _id_or_bad(where: str, given: object) -> str | BadId:
    if isinstance(given, str) and _CONTROL.search(given):
        return BadId(where, "it has a control character; there must be one id in each line or item")
    try:
        return check_id("link_ids", given)
    except ValueError as error:
        return BadId(where, str(error))


class IdFile:
    """A file of one id a line, in UTF-8. It is opened when its first id is needed, and read in pieces.

    Blank lines, the blanks around an id, and a byte order mark do not count.
    """

    def __init__(self, path: ObjectStoragePath | str) -> None:
        self._given = path
        self._size = 0
        self._read_bytes = 0
        self._count = 0

    @property
    def expected(self) -> int | None:
        """About how many ids the file has, by its size."""
        if not self._size or not self._read_bytes:
            return None
        return max(self._count, round(self._count * self._size / self._read_bytes))

    def __iter__(self) -> Iterator[str | BadId]:
        """Return the ids.

        :raises ValueError: there is no filesystem for the URL; names the package to install.
        :raises OSError: there is no such file, or it cannot be read.
        """
        path, fs = filesystem("link_ids", self._given)
        self._size, self._read_bytes, self._count = fs.size(path.path) or 0, 0, 0
        for number, line in enumerate(self._lines(path, fs), start=1):
            self._read_bytes += len(line) + 1
            found = _id_of_line(number, line)
            if found is not None:
                self._count += 1
                yield found

    def _lines(self, path: ObjectStoragePath, fs: Any) -> Iterator[bytes]:  # noqa: ANN401 - a filesystem of fsspec
        """Return the lines; of one that is too long, only its start."""
        rest = b""
        with fs.open(path.path, "rb", block_size=_BLOCK_BYTES) as file:
            while piece := file.read(_PIECE_BYTES):
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
                if len(rest) > _LONGEST_LINE:
                    self._read_bytes += len(rest) - _LONGEST_LINE - 1
                    rest = rest[: _LONGEST_LINE + 1]
        if rest:
            yield rest


def _id_of_line(number: int, line: bytes) -> str | BadId | None:
    """Return the id of a line; None if it is blank."""
    where = f"line {number}"
    if len(line) > _LONGEST_LINE:
        return BadId(where, f"it is longer than {_LONGEST_LINE} bytes: the file must have one id a line")
    try:
        # Also in the middle: files that were put together have one each.
        text = line.decode().removeprefix("\ufeff").strip()
    except UnicodeDecodeError:
        return BadId(where, "it is not UTF-8")
    return _id_or_bad(where, text) if text else None
