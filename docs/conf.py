"""Sphinx configuration. Tables of the README are included from there, so that each fact is written once."""

# ruff: noqa: INP001 - Sphinx reads it; it is no package
from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from airflow_provider_bankconnect import __version__ as release  # noqa: E402 - of this tree, not of an installed package

project = "BankConnect provider"
author = "the authors of airflow-provider-bankconnect"
project_copyright = ""
extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "FinBox BankConnect for Apache Airflow",
    "page_width": "1140px",
    "sidebar_width": "250px",
    "body_max_width": "none",
    "fixed_sidebar": True,
    "show_powered_by": False,
}
html_show_copyright = False
html_copy_source = False

autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
add_module_names = False
# References to other projects are not resolved: the build makes no network requests.
nitpick_ignore_regex = [(r"py:.*", r"(?!airflow_provider_bankconnect|BankConnect).*")]

_INCLUDE: Final = re.compile(r"^\.\. (readme|changelog):: *(?:(table \d+|list|all) of (.+))?$", re.MULTILINE)
_SECTION: Final = r"^(?P<level>#+) {heading}\n(?P<body>.*?)(?=^#{{1,{deep}}} |\Z)"


def setup(app: Sphinx) -> None:
    """Add the directives ``.. readme:: table 1 of Some heading`` and ``.. changelog::``."""
    app.connect("source-read", _replace_includes)
    app.connect("env-before-read-docs", lambda _, env, names: names.extend(env.found_docs - set(names)))


def _replace_includes(_: Sphinx, __: str, source: list[str]) -> None:
    source[0] = _INCLUDE.sub(_include, source[0])


def _include(line: re.Match[str]) -> str:
    kind, part, heading = line.groups()
    if kind == "changelog":
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        return to_rst(text.partition("\n")[2])
    body = section(heading)
    if part == "list":
        body = "\n".join(re.findall(r"^(?:\d\.|-|  ) .*$", body, flags=re.MULTILINE))
    elif part != "all":
        tables = re.findall(r"(?:^\|.*\n)+", body, flags=re.MULTILINE)
        body = tables[int(part.split()[1]) - 1]
    return to_rst(body)


def section(heading: str) -> str:
    """Return the README's text under a heading.

    :raises ValueError: it has no such heading.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for deep in (2, 3):
        pattern = _SECTION.format(heading=re.escape(heading), deep=deep)
        if (found := re.search(pattern, readme, flags=re.MULTILINE | re.DOTALL)) and len(found["level"]) == deep:
            return found["body"]
    raise ValueError(f"README.md has no heading {heading!r}")


def to_rst(markdown: str) -> str:
    """Convert the subset of Markdown that our pages use to reStructuredText."""
    text = re.sub(r"`([^`]+)`", r"``\1``", markdown)
    text = re.sub(r"\[([^]]+)\]\((https:[^)]+)\)", r"`\1 <\2>`__", text)
    text = re.sub(r"^#+ (.+)$", _underline, text, flags=re.MULTILINE)
    text = re.sub(r"^- ", "\n- ", text, flags=re.MULTILINE)
    return re.sub(r"(?:^\|.*\n)+", _table, text, flags=re.MULTILINE)


def _underline(heading: re.Match[str]) -> str:
    mark = "-" if heading[0].startswith("## ") else "~"
    return f"{heading[1]}\n{mark * len(heading[1])}"


def _table(rows: re.Match[str]) -> str:
    head, _, *body = ([cell.strip() for cell in line[1:-1].split("|")] for line in rows[0].splitlines())
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for first, *others in (head, *body):
        lines += [f"   * - {first}".rstrip(), *(f"     - {other}".rstrip() for other in others)]
    return "\n".join(lines) + "\n"


__all__ = ["release"]
