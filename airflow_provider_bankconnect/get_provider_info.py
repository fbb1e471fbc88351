"""What Airflow reads at start-up. A literal: every Airflow process evaluates it."""

from __future__ import annotations

from typing import Any

from airflow_provider_bankconnect import __version__

# Airflow's own "Extra Fields" does not sound like the place of a key.
_SECTION = "API Key and options"


def get_provider_info() -> dict[str, Any]:
    """Describe the provider, as Airflow's ``provider_info.schema.json`` has it."""
    return {
        "package-name": "airflow-provider-bankconnect",
        "name": "FinBox BankConnect",
        "description": "`FinBox BankConnect <https://docs.finbox.in/bank-connect/>`__: gates that open only when the "
        "vendor's own records say that a customer's bank statement has been processed.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": "FinBox BankConnect",
                "external-doc-url": "https://docs.finbox.in/bank-connect/",
                "tags": ["service"],
            }
        ],
        "hooks": [
            {
                "integration-name": "FinBox BankConnect",
                "python-modules": ["airflow_provider_bankconnect.hooks.bankconnect"],
            }
        ],
        "operators": [
            {
                "integration-name": "FinBox BankConnect",
                "python-modules": ["airflow_provider_bankconnect.operators.bankconnect"],
            }
        ],
        "sensors": [
            {
                "integration-name": "FinBox BankConnect",
                "python-modules": ["airflow_provider_bankconnect.sensors.bankconnect"],
            }
        ],
        "triggers": [
            {
                "integration-name": "FinBox BankConnect",
                "python-modules": ["airflow_provider_bankconnect.triggers.bankconnect"],
            }
        ],
        "asset-uris": [{"schemes": ["bankconnect"], "handler": None}],
        "config": {
            "bankconnect": {
                "description": "The doorbell: an endpoint in Airflow's API server that takes BankConnect's webhooks. "
                "Airflow 3.2 or later.",
                "options": {
                    "webhook_token": {
                        "description": "What BankConnect has to know to ring: the last part of the registered address. "
                        "At least 16 characters of letters, digits and ``. _ ~ -``; the same on every part of "
                        "Airflow. Empty: there is no doorbell.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "sensitive": True,
                        "example": None,
                        "default": None,
                    },
                    "webhook_token_previous": {
                        "description": "The token before that, still good while the new address is being registered.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "sensitive": True,
                        "example": None,
                        "default": None,
                    },
                    "public_url": {
                        "description": "The ``https://`` address under which BankConnect reaches the API server. "
                        "Empty: ``[api] base_url``.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "https://airflow.example.com",
                        "default": None,
                    },
                },
            }
        },
        "connection-types": [
            {
                "connection-type": "bankconnect",
                "hook-class-name": "airflow_provider_bankconnect.hooks.bankconnect.BankConnectHook",
                "hook-name": "FinBox BankConnect",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema", "extra"],
                    "relabeling": {"password": "Server Hash"},
                    "placeholders": {
                        "host": "blank: apis.bankconnect.finbox.in",
                        "password": "server-hash; the API Key goes below",
                        "port": "443; Airflow's Test button wants a port",
                        "timeout": "30",
                        "max_concurrency": "16",
                        "timezone": "UTC",
                    },
                },
                "conn-fields": {
                    "api_key": {
                        "label": "API Key",
                        "description": "The x-api-key that FinBox gave you with the Server Hash.",
                        # Without "null" it is a required field, and its section turns red while it is missing.
                        "schema": {"type": "string", "format": "password", "section": _SECTION},
                    },
                    "timezone": {
                        "label": "Time zone",
                        "description": "Of the times in BankConnect's payloads: an IANA name like Asia/Kolkata. "
                        "Blank: UTC.",
                        "schema": {"type": ["string", "null"], "section": _SECTION},
                    },
                    "verify": {
                        "label": "CA bundle",
                        "description": "Path of a PEM file, the same on every machine of Airflow. Blank: the usual "
                        "authorities. TLS is always verified.",
                        "schema": {"type": ["string", "null"], "section": _SECTION},
                    },
                    "timeout": {
                        "label": "Timeout (seconds)",
                        "description": "For one request. Blank: 30.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0, "section": _SECTION},
                    },
                    "max_concurrency": {
                        "label": "Polls at once",
                        "description": "The most requests under way from one triggerer. Blank: 16.",
                        "schema": {"type": ["integer", "null"], "minimum": 1, "section": _SECTION},
                    },
                },
            }
        ],
    }
