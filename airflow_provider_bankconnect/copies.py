"""The files that people copy or name: the example DAGs and the constraints. A wheel has them in the package."""

from __future__ import annotations

import argparse
import ast
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKAGE: Final = Path(__file__).parent


def examples(arguments: Sequence[str] | None = None) -> int:
    """List the example DAGs, or print the path of one: 0, or 2 where there is no such one."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_bankconnect examples",
        description="Lists the example DAGs. With a NAME, prints the path of that file, for cp.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the name of a file, with or without .py")
    name = parser.parse_args(arguments).name
    files = {path.stem: path for path in _files("example_dags", "dags", "*.py")}
    if name is None:
        width = max(map(len, files)) + 3
        lines = (f"  {path.name:<{width}}  {_first_line(path)}" for path in files.values())
        (folder,) = {path.parent for path in files.values()}
        sys.stdout.write("\n".join((f"The example DAGs in {folder}:", "", *lines, "")))
        return 0
    found = files.get(name.removesuffix(".py"))
    if found is None:
        parser.error(f"there is no {name!r}: there are {', '.join(files)}")
    sys.stdout.write(f"{found}\n")
    return 0


def constraints(arguments: Sequence[str] | None = None) -> int:
    """Print the path of the constraints for an Airflow on this Python: 0, or 2 where there are none."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_bankconnect constraints",
        description="Prints the path of a file with the versions that the tests of this package ran with, for "
        "pip install -c.",
    )
    parser.add_argument("airflow", nargs="?", metavar="AIRFLOW", help="a version of Airflow; else the installed one")
    airflow = parser.parse_args(arguments).airflow or _installed()
    tag = f"py{sys.version_info[0]}{sys.version_info[1]}"
    files = {path.name.split("-")[1]: path for path in _files("constraints", "constraints", f"*-{tag}.txt")}
    if airflow not in files:
        what = f"there is no file for Airflow {airflow}" if airflow else "no Airflow is installed"
        parser.error(f"{what}. For this Python there are files for Airflow {', '.join(files) or '(none)'}: name one")
    sys.stdout.write(f"{files[airflow]}\n")
    return 0


def _files(folder: str, in_checkout: str, pattern: str) -> list[Path]:
    """Return files of a folder of the package; in a checkout and an editable install, of the one beside the package."""
    return sorted((_PACKAGE / folder).glob(pattern)) or sorted((_PACKAGE.parent / in_checkout).glob(pattern))


def _first_line(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


def _installed() -> str:
    try:
        return version("apache-airflow")
    except PackageNotFoundError:
        return ""
