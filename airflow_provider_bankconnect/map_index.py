"""The name that Airflow shows for a mapped task: its customer, and not a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from airflow_provider_bankconnect.arguments import check_id
from airflow_provider_bankconnect.words import plain

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

# An id may hold braces: it is a value, never a part of the template.
_MAP_INDEX_TEMPLATE: Final = "{{ bankconnect_customer }}"
# The length of Airflow's column.
_LONGEST_MAP_INDEX: Final = 250


class NamedByCustomer:
    """An operator whose mapped tasks are named by their ``link_id`` and ``entity_id``."""

    # Airflow calls it for a mapped task too, before it renders the name of the task's map index. The default of an
    # argument would not do: the map_index_template of a mapped task is only what its DAG gives to partial().
    def _do_render_template_fields(
        self, parent: Any, template_fields: Any, context: Context, *args: Any, **kwargs: Any
    ) -> None:
        super()._do_render_template_fields(parent, template_fields, context, *args, **kwargs)  # type: ignore[misc]
        if parent is self:
            self._name_map_index(context)

    def _name_map_index(self, context: Context) -> None:
        values: Any = context
        map_index = getattr(values.get("ti"), "map_index", None)
        if map_index is None or map_index < 0 or values.get("map_index_template") is not None:
            return
        given = {"link": getattr(self, "link_id", None), "entity": getattr(self, "entity_id", None)}
        try:
            names = [f"{word} {plain(check_id(word, value))}" for word, value in given.items() if value is not None]
        except ValueError:
            # The task will refuse it, and name the argument.
            return
        if names:
            values["bankconnect_customer"] = ", ".join(names)[:_LONGEST_MAP_INDEX]
            values["map_index_template"] = _MAP_INDEX_TEMPLATE
