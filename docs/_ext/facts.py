"""Directives for facts that stand elsewhere in the repository, so that each of them is written once."""

# ruff: noqa: INP001 - Sphinx loads it; it is no package
from __future__ import annotations

import ast
import importlib
import inspect
import io
import os
import re
import tomllib
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, get_type_hints
from unittest import mock

from docutils import nodes
from packaging.requirements import Requirement
from pydantic import BaseModel
from sphinx.util.docutils import SphinxDirective

from airflow_provider_bankconnect.__main__ import main
from airflow_provider_bankconnect.get_provider_info import get_provider_info

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sphinx.application import Sphinx

ROOT: Final = Path(__file__).resolve().parents[2]


class Facts(SphinxDirective):
    """A directive that writes reStructuredText, which is then parsed in its place."""

    def run(self) -> list[nodes.Node]:
        """Parse the text."""
        for name in self.files:
            self.env.note_dependency(str(ROOT / name))
        return self.parse_text_to_nodes(self.text(), allow_section_headings=True)

    files: ClassVar[tuple[str, ...]] = ()

    def text(self) -> str:
        """Return the reStructuredText."""
        raise NotImplementedError


class Settings(Facts):
    """``.. settings::``: the options that the provider adds to Airflow's configuration."""

    files = ("airflow_provider_bankconnect/get_provider_info.py",)

    def text(self) -> str:
        """Return a section for each option."""
        parts = []
        for section, content in get_provider_info()["config"].items():
            parts += [_heading(f"[{section}]", "-"), content["description"]]
            for name, option in content["options"].items():
                facts = [
                    ("Type", f"{option['type']}, sensitive" if option.get("sensitive") else option["type"]),
                    ("Default", f"``{option['default']}``" if option["default"] else "empty"),
                    ("Environment variable", f"``AIRFLOW__{section.upper()}__{name.upper()}``"),
                    *([("Example", f"``{option['example']}``")] if option["example"] else []),
                    ("Since version", option["version_added"]),
                ]
                lines = [f":{label}: {value}" for label, value in facts]
                parts += [f".. _setting-{name}:", _heading(name, "~"), option["description"], "\n".join(lines)]
        return "\n\n".join(parts)


class ConnectionFields(Facts):
    """``.. connection-fields::``: the extras of the connection, as the form of Airflow 3.2 and later shows them."""

    files = ("airflow_provider_bankconnect/get_provider_info.py",)

    def text(self) -> str:
        """Return the table of the extras."""
        (kind,) = get_provider_info()["connection-types"]
        rows = [(f"``{name}``", field["label"], field["description"]) for name, field in kind["conn-fields"].items()]
        return _table(("extra", "in the form", "meaning"), rows, "18 22 60")


class Requirements(Facts):
    """``.. requirements::``: what the provider needs; ``.. requirements:: extras``: what its extras need."""

    optional_arguments = 1
    files = ("pyproject.toml",)

    def text(self) -> str:
        """Return the table."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if not self.arguments:
            rows = [("``python``", f"``{project['requires-python']}``"), *_packages(project["dependencies"])]
            return _table(("package", "versions"), rows, "65 35")
        extras = project["optional-dependencies"].items()
        rows = [
            (f"``[{extra}]``", ", ".join(f"{package} {versions}" for package, versions in _packages(needed)))
            for extra, needed in extras
        ]
        return _table(("extra", "packages"), rows, "20 80")


class CommandHelp(SphinxDirective):
    """``.. command-help:: explain``: what a command of the package prints with ``--help``."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make a block of the help's text."""
        for path in (ROOT / "airflow_provider_bankconnect").glob("**/*.py"):
            self.env.note_dependency(str(path))
        printed = io.StringIO()
        # argparse breaks lines at the width of the terminal.
        with redirect_stdout(printed), suppress(SystemExit), mock.patch.dict(os.environ, COLUMNS="72"):
            main([*self.arguments, "--help"])
        text = printed.getvalue().rstrip()
        block = nodes.literal_block(text, text, language="text")
        block["classes"].append("help")
        return [block]


class Changelog(Facts):
    """``.. changelog::``: the text of CHANGELOG.md."""

    files = ("CHANGELOG.md",)

    def text(self) -> str:
        """Return everything below the title."""
        return to_rst((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2])


def to_rst(markdown: str) -> str:
    """Convert the subset of Markdown that the changelog uses to reStructuredText."""
    text = re.sub(r"`([^`]+)`", r"``\1``", markdown)
    text = re.sub(r"\[([^]]+)\]\((https:[^)]+)\)", r"`\1 <\2>`__", text)
    text = re.sub(
        r"^(#+) (.+)$", lambda line: _heading(line[2], "-" if line[1] == "##" else "~"), text, flags=re.MULTILINE
    )
    return re.sub(r"^- ", "\n- ", text, flags=re.MULTILINE)


def _packages(requirements: Iterable[str]) -> list[tuple[str, str]]:
    parsed = [Requirement(text) for text in requirements]
    return [(f"``{one.name}``", f"``{one.specifier}``") for one in parsed]


def _heading(text: str, mark: str) -> str:
    return f"{text}\n{mark * len(text)}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], widths: str) -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for first, *others in (head, *rows):
        lines += [f"   * - {first}", *(f"     - {other}" for other in others)]
    return "\n".join(lines)


def _resolve_types(app: Sphinx) -> None:
    """Give each documented module what it has for type checkers only, so that autodoc can show the types."""
    for name in app.config.facts_typed_modules:
        module = importlib.import_module(name)
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for statement in node.body:
                    # A name may exist for type checkers only.
                    with suppress(ImportError):
                        exec(ast.unparse(statement), vars(module))  # noqa: S102 - imports of our own code
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
                alias = ast.unparse(node.target)
                if isinstance(getattr(module, alias), str):
                    setattr(module, alias, eval(getattr(module, alias), vars(module)))  # noqa: S307 - likewise

        for model in vars(module).values():
            if isinstance(model, type) and issubclass(model, BaseModel) and model is not BaseModel:
                _leave_out_validators(model)


def _leave_out_validators(model: type[BaseModel]) -> None:
    shown, types = inspect.signature(model), get_type_hints(model)
    parameters = [one.replace(annotation=types.get(name)) for name, one in shown.parameters.items()]
    model.__signature__ = shown.replace(parameters=parameters)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    for name, directive in (
        ("settings", Settings),
        ("connection-fields", ConnectionFields),
        ("requirements", Requirements),
        ("command-help", CommandHelp),
        ("changelog", Changelog),
    ):
        app.add_directive(name, directive)
    app.add_config_value("facts_typed_modules", [], "env", [list])
    app.connect("builder-inited", _resolve_types)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
