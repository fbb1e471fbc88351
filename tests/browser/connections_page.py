"""Airflow's page Admin -> Connections, used by its visible texts."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
# As root, without a screen, and without connections to the internet.
_HOW = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --disable-default-apps "
    "--force-device-scale-factor=1 --window-size=1120,1340 --lang=en-US --force-prefers-reduced-motion"
)
_MOVING = """return document.getAnimations().some(
    one => one.playState === "running" && one.effect.getTiming().iterations !== Infinity)"""
# Limit in seconds for everything that the page does, on a busy machine.
_LONGEST = 300.0


def open_browser(profile: Path) -> webdriver.Chrome:
    """Start the installed Chromium; Selenium itself would download one."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*_HOW.split(), f"--user-data-dir={profile}"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


class ConnectionsPage:
    """The list of connections, and the form that opens over it."""

    def __init__(self, browser: webdriver.Chrome, origin: str, pictures: Path) -> None:
        self._browser = browser
        self._origin = origin
        self._pictures = pictures

    def open(self) -> None:
        self._browser.get(f"{self._origin}/connections")
        self.until(lambda: self._buttons("Add Connection"))

    def until(self, happened: Callable[[], Any]) -> Any:
        """Wait for a true value and return it. Elements that the page redraws meanwhile are found again."""
        waiting = WebDriverWait(
            self._browser, _LONGEST, poll_frequency=0.25, ignored_exceptions=[StaleElementReferenceException]
        )
        return waiting.until(lambda _: happened())

    def take_picture(self, name: str, *, of: str | None = None) -> None:
        """Save a screenshot of the page, or of one element."""
        self._pictures.mkdir(parents=True, exist_ok=True)
        self._settle()
        where = self._browser.find_element(By.CSS_SELECTOR, of) if of else None
        taken = where.screenshot_as_png if where else self._browser.get_screenshot_as_png()
        (self._pictures / f"{name}.png").write_bytes(taken)

    # The form

    def add(self, conn_id: str) -> None:
        """Open an empty form for a BankConnect connection."""
        self.open()
        self._buttons("Add Connection")[0].click()
        self.until(lambda: self.field("Connection ID")).send_keys(conn_id)
        kind = self.field("Connection Type")
        kind.send_keys("FinBox")
        self.until(lambda: self._browser.find_elements(By.CSS_SELECTOR, "[role=option]"))
        kind.send_keys(Keys.ENTER)
        self.until(lambda: "Server Hash" in self.labels)

    def edit(self, conn_id: str) -> None:
        """Open the form of an existing connection."""
        self.open()
        self._press(conn_id, "Edit Connection")
        self.until(lambda: "Server Hash" in self.labels)

    def save(self) -> None:
        self.until(self.save_button.is_enabled)
        self.save_button.click()
        self.until(lambda: not self._browser.find_elements(By.CSS_SELECTOR, "[role=dialog]"))

    @property
    def save_button(self) -> WebElement:
        return self._buttons("Save")[0]

    @property
    def labels(self) -> list[str]:
        """All fields, also those of folded sections."""
        labels = self._dialog.find_elements(By.TAG_NAME, "label")
        return [label.get_attribute("textContent").strip(" *") for label in labels]

    @property
    def sections(self) -> dict[str, bool]:
        """Each section, and whether it is marked as incomplete."""
        buttons = self._dialog.find_elements(By.CSS_SELECTOR, "[data-part=item-trigger]")
        return {button.text: len(button.find_elements(By.TAG_NAME, "svg")) > 1 for button in buttons}

    def unfold(self, section: str) -> None:
        """Unfold a section; Airflow folds the others."""
        (button,) = [one for one in self._buttons(section) if one.get_attribute("data-part") == "item-trigger"]
        if button.get_attribute("aria-expanded") != "true":
            button.click()
        region = button.get_attribute("aria-controls")
        self.until(lambda: self._browser.find_element(By.ID, region).get_attribute("data-state") != "closed")
        self._settle()

    def field(self, label: str) -> WebElement:
        """Return the input of a label."""
        return self._field(label).find_element(By.CSS_SELECTOR, "input, textarea")

    def help_of(self, label: str) -> str:
        """Return the help text under a field."""
        return self._field(label).find_element(By.CSS_SELECTOR, "[data-part=helper-text]").text

    def fill(self, section: str, **values: str) -> None:
        """Type into the fields of a section; ``_`` stands for a blank in a label."""
        self.unfold(section)
        for name, value in values.items():
            self.field(name.replace("_", " ")).send_keys(value)

    def values(self, section: str, *labels: str) -> dict[str, str]:
        self.unfold(section)
        return {label: self.field(label).get_attribute("value") for label in labels}

    # The list

    def test(self, conn_id: str) -> tuple[str, str]:
        """Press the test button, and return the title and text of Airflow's message."""
        self.open()
        self._press(conn_id, "Test Connection")
        toast = "[data-scope=toast][data-part=root]"
        return self.until(lambda: self._text_of(f"{toast} [data-part=title]")), self._text_of(
            f"{toast} [data-part=description]"
        )

    def _settle(self) -> None:
        """Wait until all animations have ended, except those that never end, such as a blinking cursor."""
        self.until(lambda: not self._browser.execute_script(_MOVING))

    def _press(self, conn_id: str, button: str) -> None:
        row = f"//tr[td[normalize-space()='{conn_id}']]//button[@aria-label='{button}']"
        self.until(lambda: self._browser.find_elements(By.XPATH, row))[0].click()

    def _text_of(self, selector: str) -> str:
        return "".join(element.text for element in self._browser.find_elements(By.CSS_SELECTOR, selector))

    @property
    def _dialog(self) -> WebElement:
        return self.until(lambda: self._browser.find_elements(By.CSS_SELECTOR, "[role=dialog]"))[0]

    def _buttons(self, text: str) -> list[WebElement]:
        return self._browser.find_elements(By.XPATH, f"//button[normalize-space()='{text}']")

    def _field(self, label: str) -> WebElement:
        labels = self._dialog.find_elements(By.TAG_NAME, "label")
        found = [one for one in labels if one.get_attribute("textContent").strip(" *") == label]
        assert found, f"no field {label!r} among {self.labels}"
        return found[0].find_element(By.XPATH, "ancestor::*[@data-scope='field'][@data-part='root'][1]")
