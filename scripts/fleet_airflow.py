"""The Airflow of `make fleet`: its settings, its DAGs, the two kinds of API server, and the socket of StatsD."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import requests
from fleet_plan import CONNECTIONS, DAGS, Metrics
from live import Live

# The helpers of the system tests, which are no package. fleet.py imports others of them.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "system"))
from homes import REGISTER, Home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services import Nginx, PgBouncer, Redis

PREFIX: Final = "/airflow"
TOKEN: Final = "fleet-token-8c41e0d72f"  # noqa: S105 - of an Airflow that runs for minutes
CATCH_UP: Final = "bankconnect_catch_up"
EXPECTED: Final = "bankconnect_expected_links"
# asyncpg's named statements outlast a transaction, and PgBouncer's connections do not.
ASYNC_ARGS: Final = """
from uuid import uuid4

ASYNC = {"statement_cache_size": 0, "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__"}
"""
COMMANDS: Final = {
    "api-server": ["api-server", "--proxy-headers"],
    "worker": ["celery", "worker", "--skip-serve-logs", "--without-gossip", "--without-mingle"],
}


class FleetAirflow(Live):
    """Airflow's parts, each possibly twice, behind nginx.

    :param ports: of the two API servers.
    """

    def __init__(self, home: Path, dags: Path, *, ports: Sequence[int], nginx: Nginx, **more: Any) -> None:  # noqa: ANN401
        super().__init__(home, dags, port=nginx.port, **more)
        self._ports = ports
        self.url = f"https://localhost:{nginx.port}{PREFIX}"
        self.environment |= {
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
        }

    def command(self, part: str) -> Sequence[str]:
        """Return the arguments of ``airflow`` for a part; the two workers have names of their own."""
        kind = part.partition("#")[0]
        names = ["--celery-hostname", f"{part.replace('#', '-')}@%h", "--pid", str(self.home / f"{part}.pid")]
        return [*(COMMANDS.get(kind) or super().command(part)), *(names if kind == "worker" else [])]

    def environment_of(self, part: str) -> Mapping[str, str]:
        """Return the environment of a part: the second API server is a gunicorn with several processes."""
        if part == "api-server":
            return self.environment | {"AIRFLOW__API__PORT": str(self._ports[0])}
        if part == "api-server#2":
            several = {"AIRFLOW__API__SERVER_TYPE": "gunicorn", "AIRFLOW__API__WORKERS": "2"}
            return self.environment | several | {"AIRFLOW__API__PORT": str(self._ports[1])}
        return self.environment

    def is_warm(self) -> bool:
        """Return whether both API servers answer, also for tasks: they build that app at the first request."""
        try:
            for port in self._ports:
                requests.get(f"http://127.0.0.1:{port}{PREFIX}/execution/health", timeout=60)
        except requests.RequestException:
            return False
        return True


class StatsD:
    """A socket that receives what Airflow sends to StatsD."""

    def __init__(self, file: Path) -> None:
        self.metrics = Metrics()
        self._file = file
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 2**20)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self._file.open("ab", buffering=0) as file:
            while True:
                packet = self._socket.recv(65536)
                file.write(packet + b"\n")
                self.metrics.add(packet)


def write_home(folder: Path, short: int) -> Home:
    """Write the DAGs: those of this program, and the example DAGs that register and catch up.

    :param short: timeout in seconds of a wait that nothing ends.
    """
    home = Home(folder)
    (home.path / "config").mkdir(parents=True)
    (home.path / "config" / "fleet_database.py").write_text(ASYNC_ARGS, encoding="utf-8")
    home.add("fleet", DAGS.replace("CONNECTIONS", str(CONNECTIONS)).replace("SHORT", str(short)))
    home.add_example(REGISTER)
    every_minute = {"schedule=timedelta(minutes=10)": "schedule=timedelta(minutes=1)"}
    home.add_example(CATCH_UP, every_minute)
    second = {
        f"get('{EXPECTED}'": f"get('{EXPECTED}_two'",
        'task_id="catch_up",': f'task_id="catch_up", bankconnect_conn_id="{CONNECTIONS[1]}",',
    }
    home.add_example(CATCH_UP, every_minute | second, dag_id=f"{CATCH_UP}_two")
    return home


def settings_of(pgbouncer: PgBouncer, redis: Redis, statsd: StatsD) -> dict[str, str]:
    """Return Airflow's settings that differ from those of one machine."""
    return {
        "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN,
        "AIRFLOW__CELERY__BROKER_URL": redis.url,
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{pgbouncer.url}",
        "AIRFLOW__CELERY__SYNC_PARALLELISM": "1",
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
        # A killed worker's messages are delivered again after this time.
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "90",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "5",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "5",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS_ASYNC": "fleet_database.ASYNC",
        "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
        "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
        "AIRFLOW__METRICS__STATSD_ON": "True",
        "AIRFLOW__METRICS__STATSD_PORT": str(statsd.port),
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "180",
        # Airflow's default: a triggerer sends no heartbeat while it serves its first request for a connection.
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "30",
        # On a busy machine, an API server needs longer than the five seconds of the default.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
        "FORWARDED_ALLOW_IPS": "127.0.0.1",
    }
