"""The relay: a web app of its own that keeps BankConnect's webhooks for an Airflow that the internet cannot reach.

Nothing here imports Airflow.
"""

from __future__ import annotations
