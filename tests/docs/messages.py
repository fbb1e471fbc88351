"""The messages of the package that people meet: of errors, warnings and the page, read from its syntax trees.

A message is a pattern: its literal text, with ``…`` in the place of each value. A part that is a name is looked up: in
the assignments of its function, in what callers pass as that parameter, in constants, and in what a function of the
package returns. So a message that is put together in several places is one pattern for each way of it.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

HOLE = "…"
_ERROR = re.compile(r"\w*(Error|Exception|Timeout)$")
# Besides errors: a problem on the page, and a wrong argument of a command.
_CALLS = {"Problem", "Outcome", "_give_up"}
_LOGS = {"warning", "error", "exception", "critical"}
# A message with more ways than this, or parts nested deeper, has a hole instead.
_MOST_WAYS = 80
_DEEPEST = 6


@dataclass(frozen=True)
class Message:
    """A pattern, and where it is made: ``kind`` is the error's name, or ``log``, ``page`` or ``command``."""

    text: str
    kind: str
    place: str
    function: str

    @property
    def is_readable(self) -> bool:
        """Whether it has text, and so is not only a frame for another one such as ``Connection …: …``."""
        return len(re.findall(r"[A-Za-z]{2,}", self.text)) > 1


class Code:
    """All modules of a package."""

    def __init__(self, package: Path) -> None:
        self.modules = {
            str(path.relative_to(package)): ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted(package.rglob("*.py"))
        }
        # By module and name. The module is "" for what other modules may mean by the name.
        self.functions: dict[tuple[str, str], list[Scope]] = defaultdict(list)
        self.constants: dict[tuple[str, str], list[tuple[ast.expr, Scope]]] = defaultdict(list)
        self.calls: dict[tuple[str, str], list[tuple[ast.Call, Scope]]] = defaultdict(list)
        self.nodes: list[tuple[ast.AST, Scope]] = []
        for name, tree in self.modules.items():
            scope = Scope(name)
            for node in tree.body:
                for target, value in _assigned(node):
                    self.constants[_key(target, scope)].append((value, scope))
            self._walk(tree, scope)

    def _walk(self, node: ast.AST, scope: Scope, *, in_class: bool = False) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            scope = Scope(scope.module, node)
            # Classes of other modules may have a method of the same name.
            key = (scope.module, node.name) if in_class else _key(node.name, scope)
            self.functions[key].append(scope)
        for child in ast.iter_child_nodes(node):
            self.nodes.append((child, scope))
            if isinstance(child, ast.Call):
                self.calls[_key(_name(child.func), scope)].append((child, scope))
            self._walk(child, scope, in_class=isinstance(node, ast.ClassDef))

    @cached_property
    def messages(self) -> list[Message]:
        """All messages, each once."""
        found: dict[Message, None] = {}
        for node, scope in self.nodes:
            for kind, part in self._sinks(node, scope):
                place, function = f"{scope.module}:{node.lineno}", f"{scope.module}:{scope.name}"
                for text in self.ways(part, scope, node.lineno):
                    found.setdefault(Message(_plain(text), kind, place, function))
        return list(found)

    def _sinks(self, node: ast.AST, scope: Scope) -> Iterator[tuple[str, ast.expr]]:
        """Yield each expression that becomes a message, and its kind."""
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = _name(node.exc.func)
            # Where a function of the package makes the error, its text is found there.
            if node.exc.args and not _ERROR.match(name) and not self._find(node.exc.func, scope):
                yield name or "error", node.exc.args[-1]
        if isinstance(node, ast.Call) and (node.args or node.keywords):
            name = _name(node.func)
            if _ERROR.match(name) and node.args and not self._find(node.func, scope):
                yield name, node.args[-1]
            elif name in _CALLS:
                given = [word.value for word in node.keywords if word.arg == "problem"]
                kind = "command" if name == "_give_up" else "page"
                yield from ((kind, part) for part in given or (node.args[-1:] if name != "Outcome" else ()))
            elif node.args and isinstance(node.func, ast.Attribute):
                yield from _written(name, ast.unparse(node.func.value), node.args)

    def ways(self, part: ast.expr, scope: Scope, line: int, depth: int = 0) -> list[str]:
        """Return the texts that an expression of a statement in this line may have."""
        if depth > _DEEPEST:
            return [HOLE]
        found = list(dict.fromkeys(self._ways(part, scope, line, depth + 1)))
        return found if 0 < len(found) <= _MOST_WAYS else [HOLE]

    def _ways(self, part: ast.expr, scope: Scope, line: int, depth: int) -> list[str]:
        if choices := _choices(part):
            return self._any(choices, scope, line, depth)
        found = [HOLE]
        match part:
            case ast.Constant(value=str(text)):
                found = [re.sub(r"%(\(\w+\))?[\d.]*[a-z]", HOLE, text)]
            case ast.JoinedStr(values=values):
                found = self._joined(values, scope, line, depth)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                found = self._joined([left, right], scope, line, depth)
            case ast.Call(func=ast.Attribute(value=value, attr="format")):
                found = [re.sub(r"\{[^}]*\}", HOLE, text) for text in self.ways(value, scope, line, depth)]
            case ast.Call(func=called) if functions := self._find(called, scope):
                found = [text for one in functions for text in self._returned(one, depth)]
            case ast.Name(id=name):
                found = self._named(name, scope, line, depth)
        return found

    def _any(self, parts: Iterable[ast.expr], scope: Scope, line: int, depth: int) -> list[str]:
        return [text for part in parts for text in self.ways(part, scope, line, depth)]

    def _joined(self, parts: list[ast.expr], scope: Scope, line: int, depth: int) -> list[str]:
        ways = []
        for part in parts:
            if isinstance(part, ast.FormattedValue):
                # A conversion such as !r shows a value, and a single word is one: neither is text of ours.
                is_text = part.conversion == -1 and part.format_spec is None
                texts = self.ways(part.value, scope, line, depth) if is_text else [HOLE]
                # Where a part may be left out, the message is that with it.
                texts = [text for text in texts if text] or [""]
                ways.append(list(dict.fromkeys(text if " " in text.strip() else HOLE for text in texts)))
            else:
                ways.append(self.ways(part, scope, line, depth))
        return ["".join(texts) for texts in itertools.islice(itertools.product(*ways), _MOST_WAYS + 1)]

    def _named(self, name: str, scope: Scope, line: int, depth: int) -> list[str]:
        if name in scope.assigned:
            return [text for value in scope.before(name, line) for text in self.ways(value, scope, value.lineno, depth)]
        if name in scope.parameters:
            return self._passed(name, scope, depth)
        found = self.constants.get(_key(name, scope), ())
        return [text for value, module in found for text in self.ways(value, module, line, depth)]

    def _passed(self, name: str, scope: Scope, depth: int) -> list[str]:
        """Return the texts that the callers of a function pass as one of its parameters."""
        texts: list[str] = []
        for call, outer in self.calls[_key(scope.name, scope)]:
            place = scope.parameters.index(name)
            if isinstance(call.func, ast.Attribute) and scope.parameters[:1] == ["self"]:
                place -= 1
            given = [word.value for word in call.keywords if word.arg == name] or call.args[place : place + 1]
            texts += self._any(given, outer, call.lineno, depth)
        return texts

    def _find(self, called: ast.expr, scope: Scope) -> list[Scope]:
        """Return the functions of the package that a call may mean."""
        name = _name(called)
        return self.functions.get((scope.module, name)) or self.functions.get(("", name), [])

    def _returned(self, function: Scope, depth: int) -> list[str]:
        return [text for value in function.returned for text in self.ways(value, function, value.lineno, depth)]

    @cached_property
    def strings(self) -> str:
        """All text of the code but its docstrings, a line each."""
        docs = {id(_doc(node)) for tree in self.modules.values() for node in ast.walk(tree)}
        lines = []
        for node, _ in self.nodes:
            if isinstance(node, ast.JoinedStr):
                lines.append(
                    "".join(str(getattr(part, "value", "")) if _is_text(part) else HOLE for part in node.values)
                )
            elif _is_text(node) and id(node) not in docs:
                lines.append(str(getattr(node, "value", "")))
        return "\n".join(map(_plain, lines))


@dataclass(frozen=True)
class Assignment:
    """A value that a name gets in a line, and the last line of the block with this statement."""

    line: int
    value: ast.expr
    block_end: int


class Scope:
    """What the names of a function may be."""

    def __init__(self, module: str, function: ast.FunctionDef | ast.AsyncFunctionDef | None = None) -> None:
        self.module = module
        self.name = function.name if function else ""
        self.parameters: list[str] = []
        self.assigned: dict[str, list[Assignment]] = {}
        self.returned: list[ast.expr] = []
        if function is not None:
            given = function.args
            self.parameters = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            self._read(function.body)
            found = (node.value for node in ast.walk(function) if isinstance(node, ast.Return))
            self.returned = [value for value in found if value is not None]

    def _read(self, block: list[ast.stmt]) -> None:
        for statement in block:
            inner = [part for part in ast.iter_child_nodes(statement) if isinstance(part, ast.ExceptHandler)]
            for owner in (statement, *inner):
                for field in ("body", "orelse", "finalbody"):
                    self._read(getattr(owner, field, []))
            heads = [part for part in ast.iter_child_nodes(statement) if isinstance(part, ast.expr)]
            for node in (statement, *(node for part in heads for node in ast.walk(part))):
                for name, value in _assigned(node):
                    found = Assignment(value.lineno, value, block[-1].end_lineno or 0)
                    self.assigned.setdefault(name, []).append(found)

    def before(self, name: str, line: int) -> Iterator[ast.expr]:
        """Yield the values that a name may have in a line, the newest first."""
        known = [one for one in self.assigned[name] if one.line < line]
        for one in sorted(known, key=lambda one: one.line, reverse=True):
            yield one.value
            if line <= one.block_end:
                # It was assigned on each way to this line.
                return


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            yield name, value
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            yield name, value
        case ast.NamedExpr(target=ast.Name(id=name), value=value):
            yield name, value
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            yield from ((name.id, value) for name, value in zip(names, values, strict=False) if hasattr(name, "id"))


def _written(name: str, owner: str, arguments: list[ast.expr]) -> Iterator[tuple[str, ast.expr]]:
    """Yield what a call of a method writes to a log or a terminal, if it is of a warning or an error."""
    first = getattr(arguments[0], "value", "")
    if name == "_log":
        # That of a wait, whose driver has the log.
        yield from [("log", arguments[1])] if first == "warning" else []
    elif "log" in owner:
        is_problem = name in _LOGS or (name == "info" and str(first).startswith("Could not"))
        yield from [("log", arguments[0])] if is_problem else []
    elif (owner, name) in {("parser", "error"), ("sys.stderr", "write")}:
        yield "command", arguments[0]


def _choices(part: ast.expr) -> list[ast.expr]:
    """Return the expressions of which one gives the text; an empty list if it is made in another way."""
    match part:
        case ast.IfExp(body=one, orelse=other):
            return [one, other]
        case ast.BoolOp(values=values) | ast.Dict(values=values):
            return values
        case ast.Call(func=ast.Attribute(value=table, attr="get"), args=[_, *default]):
            return [table, *default]
        case ast.BinOp(left=value, op=ast.Mod()) | ast.NamedExpr(value=value) | ast.Subscript(value=value):
            return [value]
    return []


def _key(name: str, scope: Scope) -> tuple[str, str]:
    return (scope.module if name.startswith("_") else "", name)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _name(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _doc(node: ast.AST) -> ast.AST | None:
    match node:
        case ast.Module(body=[ast.Expr(value=doc), *_]) | ast.ClassDef(body=[ast.Expr(value=doc), *_]):
            return doc
        case ast.FunctionDef(body=[ast.Expr(value=doc), *_]) | ast.AsyncFunctionDef(body=[ast.Expr(value=doc), *_]):
            return doc
    return None


def _plain(text: str) -> str:
    return re.sub(rf"({HOLE}\s*)+{HOLE}", HOLE, " ".join(text.split()))
