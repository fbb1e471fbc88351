"""An API server with nothing but the webhook receiver, run as Airflow runs its own: ``python serve.py PORT``."""

from __future__ import annotations

import sys

import uvicorn
from receivers import api_server

if __name__ == "__main__":
    more = {"log_level": "info", "log_config": None, "access_log": False}
    uvicorn.run(api_server(), host="127.0.0.1", port=int(sys.argv[1]), **more)
