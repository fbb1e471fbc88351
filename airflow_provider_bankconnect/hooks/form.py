"""The connection form of Airflow before 3.2. Later ones read the provider info themselves."""

from __future__ import annotations

from typing import Any

from airflow_provider_bankconnect.get_provider_info import get_provider_info


def widgets() -> dict[str, Any]:
    """Make the fields of the form."""
    from wtforms import IntegerField, PasswordField, StringField  # type: ignore[import-untyped] # noqa: PLC0415
    from wtforms.validators import Optional  # type: ignore[import-untyped] # noqa: PLC0415

    fields = {}
    for name, field in _form()["conn-fields"].items():
        schema = field["schema"]
        kind = PasswordField if schema.get("format") == "password" else StringField
        # A "number" is a text field: IntegerField refuses half seconds.
        kind = IntegerField if "integer" in schema["type"] else kind
        fields[name] = kind(
            field["label"], validators=[Optional()], description=field["description"], widget=_widget(kind)
        )
    return fields


def field_behaviour() -> dict[str, Any]:
    """Return which standard fields are hidden or relabelled, and the placeholders."""
    return {name.replace("-", "_"): value for name, value in _form()["ui-field-behaviour"].items()}


def _form() -> dict[str, Any]:
    (form,) = get_provider_info()["connection-types"]
    return dict(form)


def _widget(kind: type) -> object:
    """Make the widget that Airflow 2 needs; Airflow 3.0 needs none, and may have ``wtforms`` without the library."""
    try:
        from flask_appbuilder import fieldwidgets  # type: ignore[import-not-found] # noqa: PLC0415
    except ImportError:
        return None
    if not kind.__name__.endswith("PasswordField"):
        return fieldwidgets.BS3TextFieldWidget()

    class KeptPassword(fieldwidgets.BS3PasswordFieldWidget):  # type: ignore[misc]
        """Shows Airflow's placeholder for a stored key: saving an empty field would delete the key."""

        def __call__(self, field: Any, **attributes: Any) -> Any:  # noqa: ANN401 - wtforms' own
            from airflow.www.views import SENSITIVE_FIELD_PLACEHOLDER  # type: ignore[import-not-found] # noqa: PLC0415

            self.hide_value = False
            return super().__call__(field, value=SENSITIVE_FIELD_PLACEHOLDER if field.data else "", **attributes)

    return KeptPassword()
