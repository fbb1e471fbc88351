"""FinBox BankConnect for Apache Airflow. Airflow imports this while it configures itself, so it imports nothing."""

from __future__ import annotations

__version__ = "0.1.0"
