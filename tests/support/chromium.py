"""A real Chromium over a real service, without any network but the loopback."""

import gzip
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from app.settings import PROJECT_ROOT, Settings

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
DRIVER = shutil.which("chromedriver") or ""
MARKS = [
    pytest.mark.long,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
"""Of each module that drives a browser."""
SHIPPED = PROJECT_ROOT / Settings().checkpoint
DOG = PROJECT_ROOT / "docs/img/dog.jpg"
DONE = "#history-list [data-state=done]"
_FLAGS = (
    "--headless",
    "--no-sandbox",  # of Chromium's own, which root may not have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--window-size=1280,900",
)
_AXE = Path(__file__).with_name("axe.min.js.gz")  # axe-core 4.14.1, MPL-2.0
_WAIT_S = 30


class Chromium(webdriver.Chrome):
    """A browser that finds by CSS, waits, and keeps what it asked for and complained about."""

    def one(self, css: str) -> WebElement:
        return self.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.find_elements(By.CSS_SELECTOR, css)

    def texts(self, css: str) -> list[str]:
        return [element.text for element in self.all(css)]

    def wait_for(self, css: str, count: int = 1) -> list[WebElement]:
        """Wait until exactly so many elements are shown."""

        def shown(_: webdriver.Chrome) -> tuple[list[WebElement]] | None:
            found = [element for element in self.all(css) if element.is_displayed()]
            return (found,) if len(found) == count else None

        wait = WebDriverWait(self, _WAIT_S, ignored_exceptions=[StaleElementReferenceException])
        (found,) = wait.until(shown, f"never {count} of {css}") or ([],)
        return found

    def wait_until(self, script: str) -> Any:
        """Wait until an expression is true, and give its value."""
        return WebDriverWait(self, _WAIT_S).until(
            lambda _: self.execute_script(f"return {script}"), f"never {script}"
        )

    def visit(self, url: str) -> None:
        """Open a service's page as a first visitor does, and wait until the service is ready."""
        self.get("about:blank")
        self.look()
        self.get(url)
        self.execute_script("sessionStorage.clear()")
        self.get(url)
        self.asked()
        self.complaints()
        self.wait_for("#health[data-state=ready]")

    def assert_nothing_foreign(self, url: str) -> None:
        """Nothing foreign was asked, and the policy of the page refused nothing."""
        ours = (f"{url}/", "blob:", "data:")
        assert {each for each in self.asked() if not each.startswith(ours)} == set()
        assert self.complaints() == []

    def keys(self, name: str, code: int = 0, **more: Any) -> None:
        """Press a key as a person does: whatever has the focus gets it."""
        for kind in ("keyDown", "keyUp"):
            given = {"key": name, "windowsVirtualKeyCode": code, **more}
            self.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, **given})

    def look(self, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        """Take a colour scheme and a size; widths of phones are narrower than a window may be."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def violations(self) -> list[str]:
        """Give what axe-core finds wrong with the page as it is now."""
        if not self.execute_script("return Boolean(window.axe)"):
            self.execute_script(gzip.decompress(_AXE.read_bytes()).decode())
        found = self.execute_async_script(
            "axe.run().then(arguments[0], (error) => arguments[0]({violations: [String(error)]}))"
        )
        return [json.dumps(each)[:2000] for each in found["violations"]]

    def asked(self) -> set[str]:
        """Give the addresses asked for since the last call."""
        messages = [json.loads(row["message"])["message"] for row in self._log("performance")]
        return {
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        }

    def complaints(self) -> list[str]:
        """Give what the console has heard since the last call, but for refused requests."""
        rows = [row["message"] for row in self._log("browser")]
        return [row for row in rows if "Failed to load resource" not in row]

    def _log(self, name: str) -> list[dict[str, str]]:
        rows: list[dict[str, str]] = self.get_log(name)  # type: ignore[no-untyped-call]
        return rows


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """Give a browser with a new profile; it may use the clipboard."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chromium(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        allowed = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        browser.execute_cdp_cmd("Browser.grantPermissions", allowed)
        yield browser
    finally:
        browser.quit()
