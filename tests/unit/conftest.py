from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from hypothesis import settings

if TYPE_CHECKING:
    import pytest

# `make mutants` runs the tests thousands of times. What so few examples do not show, the plain tests have to.
EXAMPLES_UNDER_MUTMUT = 30


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Draw fewer examples under mutmut, and leave out the tests of what is drawn, which find no defect of ours."""
    if "MUTANT_UNDER_TEST" not in os.environ:
        return
    items[:] = [item for item in items if not re.search("_above_(often|reach)_", item.name)]
    for item in items:
        function: Any = getattr(item, "obj", None)
        drawn = getattr(function, "_hypothesis_internal_use_settings", None)
        if drawn is not None and drawn.max_examples > EXAMPLES_UNDER_MUTMUT:
            function._hypothesis_internal_use_settings = settings(drawn, max_examples=EXAMPLES_UNDER_MUTMUT)
