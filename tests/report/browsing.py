"""A real browser without a screen, and what tests ask of a page in it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

READY_S = 30.0


class Page:
    """A page from disk in Debian's chromium."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file and wait until it has drawn itself; forget what was logged before."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get_log("browser")
        self.driver.get(path.resolve().as_uri())
        limit = time.monotonic() + READY_S
        while self.run("document.documentElement.dataset.ready") != "yes":
            assert time.monotonic() < limit, self.log()
            time.sleep(0.02)
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for has been painted."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )

    def run(self, expression: str, *arguments: Any) -> Any:
        """Return the value of a JavaScript expression."""
        return self.driver.execute_script(f"return {expression}", *arguments)

    def log(self) -> list[str]:
        """What the console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)
        self.settle()

    def write(self, selector: str, text: str) -> None:
        """Put text into a field as a person does."""
        field = self.driver.find_element("css selector", selector)
        field.clear()
        field.send_keys(text)
        self.settle()

    def rows(self) -> list[dict[str, Any]]:
        """The configs' table as shown: per row the values by column."""
        found = self.run(
            "[...document.querySelectorAll('#table-body tbody tr')].map((row) => "
            "[Number(row.dataset.id), [...row.cells].map((c) => [c.dataset.key, c.dataset.value])])"
        )
        return [{"id": i} | {k: json.loads(v) for k, v in cells} for i, cells in found]

    def paints(self, selector: str) -> int:
        """How many different colours a canvas shows."""
        return int(
            self.run(
                "((c) => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, "
                "c.height).data.buffer)).size)(document.querySelector(arguments[0]))",
                selector,
            )
        )


def start() -> Page:
    """Start the browser, or skip."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver; launch/chromium.sh installs Debian's")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",  # as root, as in CI, chromium starts in no other way
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Page(webdriver.Chrome(options=options, service=Service(driver)))
