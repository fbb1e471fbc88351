"""The doorbell: BankConnect's webhooks in, the customer's run out. Needs Airflow 3.2; known by its ``address``."""

from __future__ import annotations
