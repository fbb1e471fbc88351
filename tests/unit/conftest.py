from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from hypothesis import Phase, settings

if TYPE_CHECKING:
    import pytest

# `make mutants` runs the tests thousands of times. What so few examples do not show, the plain tests have to.
EXAMPLES_UNDER_MUTMUT = 30
# Nobody reads which example has found a mutant, so that none is simplified: that can take half a minute.
PHASES_UNDER_MUTMUT = (Phase.explicit, Phase.generate)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Draw fewer examples under mutmut, and leave out the tests of what is drawn, which find no defect of ours."""
    if "MUTANT_UNDER_TEST" not in os.environ:
        return
    items[:] = [item for item in items if not re.search("_above_(often|reach)_", item.name)]
    for item in items:
        function: Any = getattr(item, "obj", None)
        drawn = getattr(function, "_hypothesis_internal_use_settings", None)
        if drawn is not None:
            few = min(drawn.max_examples, EXAMPLES_UNDER_MUTMUT)
            quick = settings(drawn, max_examples=few, phases=PHASES_UNDER_MUTMUT, database=None)
            function._hypothesis_internal_use_settings = quick
