"""The webhook receiver: an app in Airflow's API server that records BankConnect's webhooks. Needs Airflow 3.2."""

from __future__ import annotations
