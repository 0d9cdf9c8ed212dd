"""A real browser without a window, for the tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needed = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser: install Debian's chromium and chromium-driver"
)
ARGUMENTS = ("--headless=new", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
ARGUMENTS += ("--disable-sync", "--no-first-run", "--disable-dev-shm-usage")


@contextmanager
def started(folder: Path) -> Iterator[Any]:
    """A browser with its profile in a folder, which logs what it is asked to load."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    for argument in (*ARGUMENTS, *root, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, page: str, width: int, scheme: str = "light") -> None:
    """Load a page anew at a width in CSS pixels."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme_wanted})
    driver.get(page)
