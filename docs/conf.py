"""Sphinx configuration."""

# ruff: noqa: INP001 - Sphinx reads it; it is no package
from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

# Before autodoc, within whose imports pydantic refuses a class of Airflow.
import airflow.models  # noqa: E402, F401

from airflow_provider_bankconnect import __version__ as release  # noqa: E402 - of this tree, not of an installed package

project = "BankConnect provider"
author = "the authors of airflow-provider-bankconnect"
project_copyright = ""
extensions = ["sphinx.ext.autodoc", "sphinx_copybutton", "facts"]
exclude_patterns = ["_build", "_ext"]

html_theme = "furo"
pygments_dark_style = "one-dark"
html_title = "BankConnect provider for Apache Airflow"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_copy_source = False
html_show_sphinx = False
# The prompt of a console block, and its output, are not copied.
copybutton_prompt_text = "$ "

autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
maximum_signature_line_length = 80
autodoc_typehints_format = "short"
facts_typed_modules = [
    f"airflow_provider_bankconnect.{name}"
    for name in (
        *("sensors.bankconnect", "hooks.bankconnect", "api", "wait"),
        *("operators.bankconnect", "operators.catch_up", "operators.relay", "operators.storage"),
        *("triggers.bankconnect", "receiver.address", "sandbox.box", "sandbox.models"),
    )
]
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
# References to other projects are not resolved: the build makes no network requests.
nitpick_ignore_regex = [(r"py:.*", r"(?!airflow_provider_bankconnect|BankConnect).*")]

__all__ = ["release"]
