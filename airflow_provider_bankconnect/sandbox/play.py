"""Reads statements and faults from a TOML file or from command line options."""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ValidationError

from .models import Fault, Statement

if TYPE_CHECKING:
    from pathlib import Path

_SHORT: Final = {"link": "link_id", "entity": "entity_id", "statement": "statement_id"}
_TABLES: Final[dict[str, type[BaseModel]]] = {"statement": Statement, "fault": Fault}


class PlayError(ValueError):
    """A statement or fault is invalid; the message names the place, the value and what is allowed."""


def read_file(path: Path) -> tuple[list[Statement], list[Fault]]:
    """Read a TOML file with ``[[statement]]`` and ``[[fault]]`` tables.

    :raises PlayError: names the file, the table, the field, its value and what is allowed.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlayError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise PlayError(f"{path}: not TOML: {error}") from None
    statements: list[Statement] = []
    faults: list[Fault] = []
    for name, rows in tables.items():
        if name not in _TABLES:
            raise PlayError(f"{path}: unknown table {name!r}; allowed: [[statement]], [[fault]]")
        if not isinstance(rows, list):
            raise PlayError(f"{path}: {name} must be written as [[{name}]], with two brackets")
        for number, row in enumerate(rows, 1):
            try:
                if name == "statement":
                    statements.append(Statement.model_validate(with_full_names(row)))
                else:
                    faults.append(Fault.model_validate(row))
            except ValidationError as error:
                raise PlayError(f"{path}: [[{name}]] {number}: {in_words(error)}") from None
    return statements, faults


def read_statement(text: str) -> Statement:
    """Read ``link=...,after=5``; ``later=identity:30+salary:60``.

    :raises PlayError: names the field, its value and what is allowed.
    """
    row: dict[str, object] = dict(_pairs("--statement", text))
    if "later" in row:
        row["later"] = dict(part.partition(":")[::2] for part in str(row["later"]).split("+"))
    try:
        return Statement.model_validate(with_full_names(row))
    except ValidationError as error:
        raise PlayError(f"--statement: {in_words(error)}") from None


def read_fault(text: str) -> Fault:
    """Read ``kind=status,status=503,call=webhook_payloads,times=3``.

    :raises PlayError: names the field, its value and what is allowed.
    """
    try:
        return Fault.model_validate(_pairs("--fault", text))
    except ValidationError as error:
        raise PlayError(f"--fault: {in_words(error)}") from None


def with_full_names(row: object) -> object:
    """Replace the short names ``link``, ``entity`` and ``statement`` by those of the ids."""
    return {_SHORT.get(name, name): value for name, value in row.items()} if isinstance(row, dict) else row


def in_words(error: ValidationError) -> str:
    """Return one line that names each wrong field, its value and what is allowed."""
    return "; ".join(
        _describe(problem["type"], problem["loc"], problem["msg"], problem["input"], error.title)
        for problem in error.errors(include_url=False)
    )


def _describe(kind: str, loc: tuple[int | str, ...], message: str, value: object, model: str) -> str:
    field = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        names = [*(Statement if model == "Statement" else Fault).model_fields]
        close = difflib.get_close_matches(field, names, 1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        return f"{field}: no such field{guess}; allowed: {', '.join(names)}"
    if kind == "missing":
        return f"{field}: is required"
    text = message.removeprefix("Value error, ").removeprefix("Input ")
    return f"{field}: {value!r}: {text}" if field else text


def _pairs(option: str, text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in re.split(r"(?<!\\),", text):
        name, equals, value = part.partition("=")
        if not equals:
            raise PlayError(
                f"{option}: {part!r} is not name=value; separate several by commas, and write \\, in a value"
            )
        pairs[name.strip()] = value.strip().replace("\\,", ",")
    return pairs
