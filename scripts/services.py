"""Runs servers of other projects on this machine, for as long as a ``with`` lasts: Redis, PgBouncer and nginx.

Each has a folder of its own and listens on loopback. Root runs them as another user: some refuse root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import processes

if TYPE_CHECKING:
    from collections.abc import Sequence

# Limit in seconds for anything to wait for, on a busy machine.
PATIENCE: Final = 600.0


class LiveError(Exception):
    """Airflow or another server failed; the message says how, and names the log."""


class Server:
    """A server in a folder of its own, which is removed when the ``with`` ends.

    :param as_users: the users that root runs it as: the first one that this machine has.
    """

    # The program, and Debian's package that brings it.
    name: ClassVar[str]
    package: ClassVar[str]
    # The signal that makes it disconnect its clients and end.
    ending: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, *as_users: str) -> None:
        known = {user.pw_name for user in pwd.getpwall()}
        names = [name for name in (*as_users, "nobody") if name in known] if os.geteuid() == 0 else []
        self._as: dict[str, Any] = {"user": names[0], "group": pwd.getpwnam(names[0]).pw_gid} if names else {}
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"bankconnect-{self.name}-"))
        processes.remove_at_the_end(self.folder)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.prepare()
        self._own()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def prepare(self) -> None:
        """Write the files that the server needs."""

    def command(self) -> Sequence[str]:
        """Return the command that runs the server in the foreground."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server.

        :raises LiveError: it does not accept connections in time.
        """
        self._process = self._run(*self.command())
        deadline = time.monotonic() + PATIENCE
        while not self.is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise LiveError(f"{self.name} does not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the server and disconnect its clients."""
        if self._process is not None:
            processes.stop(self._process, ending=self.ending)
            self._process = None

    def kill(self) -> None:
        """End the server and its children as a crash does."""
        if self._process is not None:
            processes.kill(self._process)
            self._process = None

    def is_ready(self) -> bool:
        """Return whether the server accepts connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True

    def _own(self) -> None:
        if self._as:
            for path in (self.folder, *self.folder.rglob("*")):
                shutil.chown(path, self._as["user"], self._as["group"])

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        more = {**self._as, "extra_groups": []} if self._as else {}
        with (self.folder / "log").open("ab") as log:
            return processes.start(
                list(command),
                ending=self.ending,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **more,
            )


class Redis(Server):
    """A Redis that writes each change to a file, so that a restart loses nothing."""

    name = "redis-server"
    package = "redis-server"

    def __init__(self) -> None:
        super().__init__("redis")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        """Return the command; Redis takes its settings as options."""
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "appendonly": "yes", "save": '""'}
        return [program(self.name), *(part for key, value in options.items() for part in (f"--{key}", str(value)))]


class PgBouncer(Server):
    """A PgBouncer in transaction mode, in front of a PostgreSQL without passwords."""

    name = "pgbouncer"
    package = "pgbouncer"
    ending = signal.SIGINT

    def __init__(self, postgres_port: int) -> None:
        super().__init__("postgres")
        self._behind = postgres_port
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/postgres"

    def prepare(self) -> None:
        """Write the settings."""
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": 40,
            "max_client_conn": 500,
            "ignore_startup_parameters": "extra_float_digits",
        }
        target = f"postgres = host=127.0.0.1 port={self._behind} user=airflow"
        lines = ["[databases]", target, "[pgbouncer]", *(f"{key} = {value}" for key, value in settings.items())]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def command(self) -> Sequence[str]:
        """Return the command."""
        return [program(self.name), str(self.folder / "pgbouncer.ini")]


NGINX: Final = """
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    # The address of a webhook holds a token: neither log may have it.
    map $uri $logged {{
        "~^(?<before>.*/bankconnect/webhook/)" "${{before}}***";
        default $uri;
    }}
    log_format without_token '$remote_addr [$time_iso8601] $request_method $logged $status $request_time';
    access_log {folder}/access.log without_token;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_http_version 1.1;
    # The path goes to Airflow unchanged, with its prefix.
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto https;
    proxy_set_header Connection "";
    proxy_connect_timeout 5s;
    upstream api_servers {{
        {upstream}
        keepalive 32;
    }}
    {servers}
}}
"""
NGINX_SERVER: Final = """
    server {{
        listen 127.0.0.1:{port} ssl;
        listen [::1]:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        location {prefix}/ {{
            proxy_pass http://api_servers;
        }}
        location {prefix}/bankconnect/webhook/ {{
            # An error of nginx quotes the request.
            error_log /dev/null crit;
            client_max_body_size 64k;
            proxy_read_timeout 30s;
            proxy_pass http://api_servers;
        }}
    }}
"""


class Nginx(Server):
    """An nginx with TLS in front of API servers, which it asks in turn.

    :param upstream: ports of the API servers.
    :param certificates: PEM files with a certificate and its key, for each port that it listens on.
    :param prefix: the path under which Airflow is, such as ``/airflow``.
    """

    name = "nginx"
    package = "nginx"
    ending = signal.SIGQUIT

    def __init__(self, upstream: Sequence[int], certificates: Sequence[tuple[Path, Path]], prefix: str) -> None:
        super().__init__("www-data")
        self._upstream, self._prefix = upstream, prefix
        self.ports = [self.port, *(free_port() for _ in certificates[1:])]
        self._certificates = certificates

    def prepare(self) -> None:
        """Write the settings, and copy the certificates to where nginx may read them."""
        servers = []
        for port, files in zip(self.ports, self._certificates, strict=True):
            copies = [shutil.copy(file, self.folder / f"{port}{file.suffix}") for file in files]
            certificate, key = map(str, copies)
            servers.append(NGINX_SERVER.format(port=port, certificate=certificate, key=key, prefix=self._prefix))
        upstream = " ".join(f"server 127.0.0.1:{port} max_fails=1 fail_timeout=2s;" for port in self._upstream)
        text = NGINX.format(folder=self.folder, upstream=upstream, servers="".join(servers))
        (self.folder / "nginx.conf").write_text(text, encoding="utf-8")

    def command(self) -> Sequence[str]:
        """Return the command."""
        return [program(self.name), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]


def program(name: str) -> str:
    """Return the path of a program; Debian keeps some servers outside the path of users.

    :raises LiveError: it is not found.
    """
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise LiveError(f"{name} is not found")
    return found


def require(*servers: type[Server]) -> None:
    """Check that the programs of these servers are installed.

    :raises LiveError: some are not; the message says which, and how to install them.
    """
    missing = []
    for server in servers:
        try:
            program(server.name)
        except LiveError:
            missing.append(server.package)
    if missing:
        packages = ", ".join(missing)
        raise LiveError(f"Missing: {packages}. Install Debian's packages, or run scripts/install-system-packages.sh")


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
