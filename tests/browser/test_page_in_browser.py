"""The page of BankConnect in Chromium, with a real API server: as admin, as viewer, and logged out."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from connections_page import CHROMIUM, DRIVER, open_browser
from homes import CONNECTION, ROOT, WAIT
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from servers import api_server, set_passwords

from airflow_provider_bankconnect.sandbox import Sandbox, Statement

AIRFLOW = tuple(map(int, version("apache-airflow-core").split(".")[:2]))
HAS_WEBHOOKS = AIRFLOW >= (3, 2)
needs_webhooks = pytest.mark.skipif(not HAS_WEBHOOKS, reason="needs Airflow 3.2")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium and chromedriver are missing: scripts/install-system-packages.sh"
    ),
    pytest.mark.skipif(AIRFLOW < (3, 1), reason="needs Airflow 3.1"),
]
PICTURES = ROOT / ".cache" / "browser"
PAGE, LINK, HOSTILE = "/bankconnect-ui/", "loan-4711", "<script>alert('x')</script>\"" + "प्रिय" * 90
USERS = {"ada": "admin", "vic": "viewer"}
# Limit in seconds for everything that a page does, on a busy machine.
LONGEST = 300.0


@pytest.fixture(scope="module")
def box():
    with Sandbox() as sandbox:
        sandbox.play(Statement(link_id=LINK, entity_id="customer-0", statement_id="statement-0", after=0.0))
        yield sandbox


def airflow_at(factory, box, path):
    def prepare(home):
        set_passwords(home, **{name: name for name in USERS})
        for name in (WAIT, "bankconnect_on_webhook") if HAS_WEBHOOKS else (WAIT,):
            home.add_example(name)
        with home.job("dags", "reserialize") as parsing:
            assert parsing.finish() == 0
        fill(home, events=40 * HAS_WEBHOOKS, waits=12, links=[LINK, HOSTILE[:480]])

    return api_server(
        factory,
        path=path,
        prepare=prepare,
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=",".join(f"{name}:{role}" for name, role in USERS.items()),
        AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
        AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN="token-of-the-browser-tests",
        AIRFLOW__BANKCONNECT__PUBLIC_URL="https://airflow.example.com",
        **{CONNECTION: box.connection_json},
    )


def fill(home, **what):
    """Add webhooks and waits; see ``many_customers.py``."""
    script = str(Path(__file__).with_name("many_customers.py"))
    command = [sys.executable, "-W", "ignore", script, json.dumps(what)]
    done = subprocess.run(command, env=home.environment, cwd=home.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory, box):
    """An Airflow with customers."""
    with airflow_at(tmp_path_factory, box, "") as home:
        yield home


@pytest.fixture(scope="module")
def airflow_below_a_path(tmp_path_factory, box):
    """Another one, whose ``base_url`` has a path."""
    with airflow_at(tmp_path_factory, box, "/team-a") as home:
        yield home


@pytest.fixture(params=["airflow", "airflow_below_a_path"])
def any_airflow(request):
    """Run the test with each of them."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def chromium(tmp_path):
    browser = Browser(open_browser(tmp_path / "profile"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def reader(chromium, airflow):
    """A browser with a viewer's login."""
    return log_in(chromium, airflow, "vic")


def log_in(chromium, airflow, name):
    chromium.origin = airflow.origin
    chromium.open(PAGE)
    chromium.log_in(name)
    chromium.until(lambda: chromium.heading == "Webhooks and waits")
    return chromium


class Browser:
    """A browser, and what a reader does with it."""

    def __init__(self, driver):
        self.driver = driver
        self.origin = ""

    def until(self, happened):
        waiting = WebDriverWait(
            self.driver, LONGEST, poll_frequency=0.2, ignored_exceptions=[StaleElementReferenceException]
        )
        return waiting.until(lambda _: happened())

    def open(self, path):
        self.driver.get(f"{self.origin}{path}")

    def log_in(self, name):
        """Fill in the login form of Airflow's simple auth manager."""
        self.until(lambda: self.all("input[name=username]"))[0].send_keys(name)
        self.all("input[name=password]")[0].send_keys(name, Keys.ENTER)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def link(self, text):
        return self.until(lambda: self.driver.find_elements(By.PARTIAL_LINK_TEXT, text))[0]

    @property
    def heading(self):
        return "".join(one.text for one in self.all("h1"))

    @property
    def text(self):
        return self.driver.find_element(By.TAG_NAME, "body").text

    @property
    def path(self):
        return self.driver.current_url.removeprefix(self.origin)

    def set_theme(self, theme):
        self.driver.execute_script("localStorage.setItem('theme', arguments[0])", theme)
        self.driver.refresh()

    def take_picture(self, name, *, width=1400, height=1000):
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.driver.set_window_size(width, height)
        (PICTURES / f"{name}.png").write_bytes(self.driver.get_screenshot_as_png())

    def violations(self):
        """Return what axe-core objects to."""
        import axe_core_python  # noqa: PLC0415 - only here

        script = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
        self.driver.execute_script(script)
        found = self.driver.execute_async_script(
            "const done = arguments[0];"
            "axe.run(document).then(found => done(found.violations), error => done([{id: `${error}`}]))"
        )
        return [(one["id"], [node["html"][:200] for node in one.get("nodes", [])][:3]) for one in found]


def test_reader_logs_in_and_comes_back_to_the_same_view(chromium, any_airflow):
    chromium.origin = any_airflow.origin
    chromium.open(f"{PAGE}waits?q=loan-3")
    chromium.until(lambda: chromium.all("input[name=username]"))
    assert "loan-3" not in chromium.text

    chromium.log_in("vic")

    chromium.until(lambda: chromium.heading == "Open waits")
    assert chromium.path == f"{PAGE}waits?q=loan-3"
    assert "loan-3" in chromium.text


def test_admin_opens_the_page_from_the_menu_and_goes_on_to_the_task_and_its_explanation(chromium, any_airflow, box):
    log_in(chromium, any_airflow, "ada")
    chromium.open("/")
    menu = chromium.until(lambda: [one for one in chromium.all("nav button, button") if one.text.strip() == "Browse"])
    menu[0].click()
    entry = chromium.until(lambda: chromium.driver.find_elements(By.PARTIAL_LINK_TEXT, "BankConnect"))[0]
    assert entry.get_attribute("href") == f"{any_airflow.origin}{PAGE}"
    # In a tab of its own.
    assert entry.get_attribute("target") == "_blank"
    chromium.take_picture("page-menu")

    chromium.open(f"{PAGE}waits?q={LINK}")
    chromium.link("wait_for_statement").click()
    chromium.until(lambda: "/tasks/wait_for_statement" in chromium.driver.current_url)
    chromium.driver.get(f"{chromium.driver.current_url.partition('?')[0]}/details")
    button = chromium.link("BankConnect: why is it waiting?")
    chromium.take_picture("page-link")
    tabs = chromium.driver.window_handles
    chromium.driver.execute_script("arguments[0].click()", button)
    # Airflow 3.1 opens another tab.
    if AIRFLOW < (3, 2):
        chromium.until(lambda: len(chromium.driver.window_handles) > len(tabs))
        chromium.driver.switch_to.window(chromium.driver.window_handles[-1])
    chromium.until(lambda: chromium.heading == "Why is it waiting?")
    assert LINK in chromium.text
    asked = len(box.requests)

    next(one for one in chromium.all("button") if one.text == "Ask BankConnect now").click()
    chromium.until(lambda: chromium.all("#verdict"))
    assert "PASSED: payload history of link 'loan-4711'" in chromium.text
    assert "statement-0" in chromium.text
    assert "Check again" in chromium.text
    assert len(box.requests) > asked
    chromium.take_picture("page-explain", height=900)


def test_each_view_is_accessible_in_light_and_dark_and_shows_ids_as_text(reader):
    chromium = reader
    for theme in ("light", "dark"):
        chromium.set_theme(theme)
        for path in ("", "webhooks", "waits", "explain", "nothing"):
            chromium.open(f"{PAGE}{path}")
            chromium.until(lambda: chromium.heading)
            assert chromium.violations() == [], path
            with contextlib.suppress(Exception):
                pytest.fail(f"a script ran: {chromium.driver.switch_to.alert.text}")
            chromium.take_picture(f"page-{path or 'overview'}-{theme}", height=1200)
        is_dark = chromium.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert is_dark == ("rgb(22, 29, 45)" if theme == "dark" else "rgb(255, 255, 255)")
    chromium.open(f"{PAGE}waits")
    assert "<script>alert('x')</script>" in chromium.text


def test_page_works_on_a_phone_and_with_the_keyboard(reader):
    chromium = reader
    for path in ("", "webhooks", "waits", "explain"):
        chromium.driver.set_window_size(390, 844)
        chromium.open(f"{PAGE}{path}")
        chromium.until(lambda: chromium.heading)
        wide = chromium.driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, path
        assert chromium.violations() == [], path
        chromium.take_picture(f"page-{path or 'overview'}-phone", width=390, height=1600)

    chromium.open(f"{PAGE}waits")
    chromium.until(lambda: chromium.heading)
    keys = chromium.driver.switch_to.active_element
    keys.send_keys(Keys.TAB)
    assert chromium.driver.switch_to.active_element.text == "Skip to the content"
    chromium.driver.switch_to.active_element.send_keys(Keys.ENTER)
    chromium.driver.switch_to.active_element.send_keys(Keys.TAB)
    search = chromium.driver.switch_to.active_element
    assert search.get_attribute("type") == "search"
    search.send_keys("loan-7", Keys.ENTER)
    chromium.until(lambda: "q=loan-7" in chromium.driver.current_url)
    assert "loan-7" in chromium.text


def test_times_are_in_the_zone_that_the_reader_has_chosen_in_airflow(reader):
    chromium = reader
    chromium.open(f"{PAGE}waits")
    shown = {}
    for zone in ("UTC", "Asia/Kolkata"):
        chromium.driver.execute_script("localStorage.setItem('timezone', JSON.stringify(arguments[0]))", zone)
        chromium.driver.refresh()
        # Browsers still name the city as it was called before.
        place = "Asia/" if "/" in zone else zone
        chromium.until(lambda place=place: f"Times in {place}" in chromium.text)
        first = chromium.all("td time")[0]
        shown[zone] = first.text, first.get_attribute("title")
    (utc, iso), (local, same) = shown.values()
    assert iso == same
    assert utc == iso.replace("T", " ").removesuffix("+00:00")
    assert local != utc


@needs_webhooks
def test_thousands_of_webhooks_and_waits_stay_readable(chromium, airflow):
    fill(airflow, events=3000, waits=2000)
    log_in(chromium, airflow, "ada")
    assert len(chromium.all("tbody tr")) == 20
    chromium.take_picture("page", height=1100)
    chromium.open(f"{PAGE}webhooks")
    assert len(chromium.all("tbody tr")) == 50
    chromium.link("Older webhooks").click()
    chromium.until(lambda: "before=" in chromium.driver.current_url)
    assert len(chromium.all("tbody tr")) == 50
