"""Who may see what on the page under Airflow's FAB auth manager. `make browser FAB=1` installs that."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import requests
from homes import CONNECTION, WAIT
from servers import api_server
from test_page_in_browser import AIRFLOW, HAS_WEBHOOKS, LINK, PAGE, fill

from airflow_provider_bankconnect.sandbox import Sandbox, Statement

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(AIRFLOW < (3, 1), reason="needs Airflow 3.1"),
    pytest.mark.skipif(
        AIRFLOW >= (3, 1) and find_spec("airflow.providers.fab") is None, reason="make browser FAB=1 installs FAB"
    ),
]
USERS = {"ada": "Admin", "vic": "Viewer", "pat": "Public"}
MANAGER = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"


@pytest.fixture(scope="module")
def box():
    with Sandbox() as sandbox:
        sandbox.play(Statement(link_id=LINK, after=0.0))
        yield sandbox


@pytest.fixture(scope="module")
def airflow(tmp_path_factory, box):
    """An Airflow with FAB's users, and with customers."""

    def prepare(home):
        for name in (WAIT, "bankconnect_on_webhook") if HAS_WEBHOOKS else (WAIT,):
            home.add_example(name)
        run(home, "fab-db", "migrate")
        run(home, "dags", "reserialize")
        for name, role in USERS.items():
            who = ("--firstname", name, "--lastname", name, "--email", f"{name}@example.com", "--password", name)
            run(home, "users", "create", "--username", name, "--role", role, *who)
        fill(home, events=5 * HAS_WEBHOOKS, waits=3, links=[LINK])

    with api_server(
        tmp_path_factory, prepare=prepare, AIRFLOW__CORE__AUTH_MANAGER=MANAGER, **{CONNECTION: box.connection_json}
    ) as home:
        yield home


def run(home, *command):
    with home.job(*command) as job:
        assert job.finish() == 0, job.output[-3000:]


@pytest.fixture(scope="module")
def client(airflow):
    """Return a session with a user's login."""

    def log_in(name):
        session = requests.Session()
        who = {"username": name, "password": name}
        answer = session.post(f"{airflow.origin}/auth/token", json=who, timeout=60)
        session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        return session

    return log_in


@pytest.mark.parametrize(("name", "sees_menu"), [("ada", True), ("vic", False)])
def test_admin_and_viewer_see_waits_and_webhooks_with_or_without_the_menu(client, airflow, box, name, sees_menu):
    session = client(name)
    assert session.get(f"{airflow.origin}/api/v2/plugins", timeout=60).ok == sees_menu

    page = session.get(f"{airflow.origin}{PAGE}", timeout=60)
    assert page.status_code == 200
    assert "manual-" in page.text
    assert ("statement-0" in page.text) == HAS_WEBHOOKS
    assert "You may not see this" not in page.text
    asked = len(box.requests)
    answer = session.post(f"{airflow.origin}{PAGE}explain", data={"link_id": LINK}, timeout=60)
    assert "PASSED" in answer.text
    assert len(box.requests) > asked


def test_user_without_permissions_sees_no_customer_and_asks_nothing(client, airflow, box):
    session = client("pat")
    page = session.get(f"{airflow.origin}{PAGE}", timeout=60)
    assert page.status_code == 200
    assert ("You may not see this" in page.text) == HAS_WEBHOOKS
    assert "loan-" not in page.text
    assert "manual-" not in page.text
    asked = len(box.requests)
    answer = session.post(f"{airflow.origin}{PAGE}explain", data={"link_id": LINK}, timeout=60)
    assert "You may not see this" in answer.text
    assert len(box.requests) == asked


def test_reader_without_login_reaches_fabs_own_login(airflow):
    answer = requests.get(f"{airflow.origin}{PAGE}waits?q=1", timeout=60)
    assert answer.status_code == 200
    assert "/auth/login/" in answer.url
    assert "next=" in answer.url
    assert "loan-" not in answer.text
