"""The provider's metadata. Literals only: every Airflow process evaluates them at start-up."""

from __future__ import annotations

from typing import Any

from airflow_provider_bankconnect import __version__

# Airflow's default section title, "Extra Fields", would not suggest that a key belongs there.
_SECTION = "API Key and options"
_NAME = "FinBox BankConnect"


def get_provider_info() -> dict[str, Any]:
    """Return the metadata, as described by Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-bankconnect",
        "name": _NAME,
        "description": f"`{_NAME} <https://docs.finbox.in/bank-connect/>`__: sensors that pass only when the vendor's "
        "own records say that a customer's bank statement has been processed.",
        "versions": [__version__],
        "integrations": [
            {"integration-name": _NAME, "external-doc-url": "https://docs.finbox.in/bank-connect/", "tags": ["service"]}
        ],
        "hooks": _modules("hooks"),
        "operators": _modules("operators"),
        "sensors": _modules("sensors"),
        "triggers": _modules("triggers"),
        "asset-uris": _asset_uris(),
        # Airflow 2.11 reads these.
        "dataset-uris": _asset_uris(),
        "config": {"bankconnect": _settings()},
        "connection-types": [_connection_type()],
    }


def _modules(kind: str) -> list[dict[str, Any]]:
    return [{"integration-name": _NAME, "python-modules": [f"airflow_provider_bankconnect.{kind}.bankconnect"]}]


def _asset_uris() -> list[dict[str, Any]]:
    converter = "airflow_provider_bankconnect.lineage.convert_asset_to_openlineage"
    return [{"schemes": ["bankconnect"], "handler": None, "to_openlineage_converter": converter}]


def _settings() -> dict[str, Any]:
    return {
        "description": "The webhook receiver: an endpoint in Airflow's API server that records BankConnect's webhooks. "
        "Airflow 3.2 or later.",
        "options": {
            "webhook_token": _option(
                "The secret last part of the address that is registered with BankConnect. At least 16 characters of "
                "letters, digits and ``. _ ~ -``; the same on every component of Airflow. Empty: the webhook receiver "
                "is off.",
                sensitive=True,
            ),
            "webhook_token_previous": _option(
                "The previous token, still valid until the new address is registered.", sensitive=True
            ),
            "public_url": _option(
                "The ``https://`` address under which BankConnect reaches the API server. Empty: ``[api] base_url``.",
                example="https://airflow.example.com",
            ),
            "api_server_url": _option(
                "The address under which Airflow's other components reach an API server with plugins (``airflow "
                "api-server --apps core``, or all apps). Set it if your API servers are split. Empty: that of ``[core] "
                "execution_api_server_url``, else ``[api] base_url``.",
                example="http://airflow-api-server-core:8080",
            ),
        },
    }


def _option(description: str, *, example: str | None = None, **more: bool) -> dict[str, Any]:
    constant = {"version_added": "0.1.0", "type": "string", "default": None}
    return {"description": description, "example": example, **constant, **more}


def _connection_type() -> dict[str, Any]:
    return {
        "connection-type": "bankconnect",
        "hook-class-name": "airflow_provider_bankconnect.hooks.bankconnect.BankConnectHook",
        "hook-name": _NAME,
        "ui-field-behaviour": {
            "hidden-fields": ["login", "schema", "extra"],
            "relabeling": {"password": "Server Hash"},
            "placeholders": {
                "host": "blank: apis.bankconnect.finbox.in",
                "password": "server-hash; the API Key goes below",
                "port": "443; Airflow's Test button needs a port",
                "timeout": "30",
                "max_concurrency": "16",
                "timezone": "UTC",
            },
        },
        "conn-fields": {
            # Without "null" the field is required, and its section turns red while it is missing.
            "api_key": _field(
                "API Key", "The x-api-key that FinBox gave you with the Server Hash.", "string", format="password"
            ),
            "timezone": _field(
                "Time zone",
                "Of the times in BankConnect's payloads: an IANA name like Asia/Kolkata. Blank: UTC.",
                ["string", "null"],
            ),
            "verify": _field(
                "CA bundle",
                "Path of a PEM file, the same on every machine of Airflow. Blank: the default certificate authorities. "
                "TLS is always verified.",
                ["string", "null"],
            ),
            "timeout": _field(
                "Timeout (seconds)", "For one request. Blank: 30.", ["number", "null"], exclusiveMinimum=0
            ),
            "max_concurrency": _field(
                "Polls at once",
                "The maximum number of requests from one triggerer. Blank: 16.",
                ["integer", "null"],
                minimum=1,
            ),
        },
    }


def _field(label: str, description: str, kind: str | list[str], **schema: object) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": kind, "section": _SECTION, **schema}}
