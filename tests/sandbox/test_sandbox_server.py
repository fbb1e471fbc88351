"""The server: its connections, its request log, its controls, its start and stop."""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement


def test_connections_are_counted_and_kept_alive(client, new_client, eventually):
    for _ in range(3):
        client.get("entity/")
    assert (client.box.connections, client.box.open_connections) == (1, 1)
    other = new_client(client.box, accept="*/*")
    other.get("entity/")
    assert [record.connection for record in client.box.requests] == [1, 1, 1, 2]
    other.session.close()
    eventually(lambda: client.box.open_connections == 1)
    assert client.box.connections == 2


def test_an_idle_connection_is_closed_after_keep_alive(serve, eventually):
    with serve(keep_alive=0.1) as client:
        client.get("entity/")
        eventually(lambda: client.box.open_connections == 0)
        assert client.get("entity/").status_code == 200
        assert client.box.connections == 2


def test_a_request_is_logged_unchanged(client):
    before = time.monotonic()
    client.post("entity/update_webhook/?a=%2F&b=", json={"webhook_url": "https://a.example/"})
    (record,) = client.box.requests
    assert (record.call, record.method, record.status) == ("update_webhook", "POST", 200)
    assert record.path == "/bank-connect/v1/entity/update_webhook/?a=%2F&b="
    assert record.query == {"a": "/", "b": ""}
    assert record.headers["x-api-key"] == client.box.api_key
    assert json.loads(record.body) == {"webhook_url": "https://a.example/"}
    assert before <= record.at <= time.monotonic()
    assert client.box.api_key not in repr(record)


@pytest.mark.parametrize(("size", "kept"), [(0, 0), (2, 2), (None, 5)])
def test_log_size_limits_the_log_and_not_the_counts(serve, size, kept):
    with serve(log_size=size) as client:
        for _ in range(5):
            client.get("entity/")
        assert len(client.box.requests) == kept
        assert client.box.counts["entities"] == 5


def test_the_connection_is_an_airflow_connection(box):
    assert box.connection == {
        "conn_type": "bankconnect",
        "host": f"https://localhost:{box.port}/bank-connect/v1",
        "password": box.server_hash,
        "extra": {"api_key": box.api_key, "verify": box.ca_file},
    }
    assert json.loads(box.connection_json) == box.connection


def test_controls_work_while_it_runs(client):
    played = client.control("POST", "statements", json={"link": "l", "statement_id": "s"})
    assert (played.status_code, played.json()["statement_id"]) == (201, "s")
    assert [row["statement_id"] for row in client.history("l")] == ["s"]

    assert client.control("POST", "faults", json={"kind": "status", "times": 1}).status_code == 201
    assert client.control("GET", "faults").json() == {"faults": [{"kind": "status", "times": 1}]}
    assert client.get("entity/").status_code == 503
    assert client.control("GET", "faults").json() == {"faults": []}
    client.control("POST", "faults", json={"kind": "status"})
    client.control("DELETE", "faults")
    assert client.get("entity/").status_code == 200


def test_controls_list_requests_and_deliveries_without_the_keys(client, eventually):
    client.register()
    client.control("POST", "webhooks", json={"a": 1})
    eventually(lambda: client.box.inbox)
    listed = client.control("GET", "requests?call=update_webhook")
    assert [one["call"] for one in listed.json()["requests"]] == ["update_webhook"]
    assert client.box.api_key not in listed.text
    assert client.box.server_hash not in listed.text
    eventually(lambda: client.control("GET", "deliveries").json()["deliveries"][0]["outcome"] == "delivered")
    assert client.control("GET", "inbox").json()["webhooks"][0]["body"] == {"a": 1}


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("statements", '{"lnk": "l"}', "did you mean link_id"),
        ("statements", '{"after": "soon"}', "after: 'soon'"),
        ("faults", '{"kind": "explode"}', "kind: 'explode'"),
        ("faults", "{", "Expecting"),
        ("statements", "[]", "valid dictionary"),
        ("webhooks", "[]", "object"),
    ],
)
def test_an_invalid_control_call_is_a_400_with_the_reason(client, path, body, detail):
    answer = client.control("POST", path, data=body)
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]


def test_other_hosts_may_call_the_inbox_but_not_the_controls(serve):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            address = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has only loopback addresses")
    with serve(host=address) as client:
        base = f"https://{address}:{client.box.port}/sandbox"
        assert client.session.get(f"{base}/requests", timeout=60).status_code == 403
        assert client.session.post(f"{base}/faults", json={"kind": "reset"}, timeout=60).status_code == 403
        assert client.session.get(f"{base}/inbox", timeout=60).status_code == 403
        assert client.session.post(f"{base}/inbox", json={}, timeout=60).status_code == 200
        assert client.get("entity/").status_code == 200


def test_it_stops_at_once_and_leaves_no_thread_or_file(recwarn):
    before = threading.active_count()
    started = time.monotonic()
    for _ in range(3):
        with Sandbox() as box, requests.Session() as session:
            session.trust_env = False
            session.get(f"{box.url}/entity/", verify=box.ca_file, timeout=60)
            session.post(
                f"{box.url}/entity/update_webhook/",
                headers={"x-api-key": box.api_key, "server-hash": box.server_hash},
                json={"webhook_url": box.inbox_url},
                verify=box.ca_file,
                timeout=60,
            )
            box.play(Statement(link_id="l"))
            folder = Path(box.ca_file).parent
            assert folder.is_dir()
        assert not folder.exists()
    gc.collect()
    # Half of the keep-alive of the connections that the sessions keep open.
    assert time.monotonic() - started < 300
    assert threading.active_count() == before
    assert not recwarn.list


def test_it_stops_while_a_client_waits_for_an_answer():
    with Sandbox(faults=[Fault(kind="delay", seconds=600)]) as box:
        failed = []

        def get():
            try:
                requests.get(f"{box.url}/entity/", verify=box.ca_file, timeout=600)
            except requests.RequestException as error:
                failed.append(error)

        client = threading.Thread(target=get)
        client.start()
        while not box.requests and client.is_alive():
            time.sleep(0.01)
        started = time.monotonic()
    client.join(120)
    assert time.monotonic() - started < 120
    assert not client.is_alive()
    assert failed


def test_two_sandboxes_are_independent(serve):
    with serve(statements=[Statement(link_id="l")]) as one, serve() as other:
        assert (len(one.history("l")), len(other.history("l"))) == (1, 0)


def test_a_port_in_use_is_an_error_at_start(box):
    with pytest.raises(OSError, match="in use"):
        Sandbox(port=box.port).start()


@pytest.mark.parametrize("key", ["", "a b", "a€b", "a\nb"])
@pytest.mark.parametrize("name", ["api_key", "server_hash"])
def test_a_key_that_is_no_header_value_is_refused_and_not_shown(name, key):
    with pytest.raises(ValueError, match=name) as caught:
        Sandbox(**{name: key})
    assert not key.strip() or key not in str(caught.value)


def test_without_the_extra_the_error_names_what_to_install():
    code = (
        "import sys; sys.modules['trustme'] = None; from airflow_provider_bankconnect.sandbox import Statement, Sandbox"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 1
    assert "install the package with its extra [sandbox]" in run.stderr


def test_it_imports_neither_airflow_nor_the_rest_of_the_package():
    code = (
        "import sys, airflow_provider_bankconnect.sandbox.box, airflow_provider_bankconnect.sandbox.__main__\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('airflow', 'airflow_provider_bankconnect')\n"
        "             and not n.startswith('airflow_provider_bankconnect.sandbox')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == "['airflow_provider_bankconnect']"
