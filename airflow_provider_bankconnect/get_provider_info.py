"""What Airflow reads at start-up. A literal: every Airflow process evaluates it."""

from __future__ import annotations

from typing import Any

from airflow_provider_bankconnect import __version__


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
        "connection-types": [
            {
                "connection-type": "bankconnect",
                "hook-class-name": "airflow_provider_bankconnect.hooks.bankconnect.BankConnectHook",
                "hook-name": "FinBox BankConnect",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema", "extra"],
                    "relabeling": {"password": "Server Hash"},
                    "placeholders": {
                        "host": "blank: the vendor's own, https://apis.bankconnect.finbox.in/bank-connect/v1",
                        "port": "443: Airflow's Test button wants a port",
                        "timeout": "30",
                        "max_concurrency": "16",
                        "timezone": "UTC",
                    },
                },
                "conn-fields": {
                    "api_key": {
                        "label": "API Key",
                        "description": "The x-api-key that FinBox gave you.",
                        "schema": {"type": ["string", "null"], "format": "password"},
                    },
                    "timezone": {
                        "label": "Time zone",
                        "description": "Zone of the vendor's date_time, an IANA name. Blank: UTC.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "verify": {
                        "label": "CA bundle",
                        "description": "Path of a CA bundle on every worker and triggerer. Blank: the usual trust. "
                        "TLS is always verified.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "timeout": {
                        "label": "Timeout",
                        "description": "Seconds for one request. Blank: 30.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "max_concurrency": {
                        "label": "Polls at once",
                        "description": "From one triggerer. Blank: 16.",
                        "schema": {"type": ["integer", "null"], "minimum": 1},
                    },
                },
            }
        ],
    }
