"""The report in a real browser: it loads nothing, fits, can be used by keyboard, and runs nothing that it quotes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from report_records import rich

from hatam.bench import report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser: install Debian's chromium and chromium-driver"
)
ARGUMENTS = ("--headless=new", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
ARGUMENTS += ("--disable-sync", "--no-first-run", "--disable-dev-shm-usage")

WORDS = """
return [...document.querySelectorAll('svg, img')].map(e => e.closest('[role=img]')?.getAttribute('aria-label'))
"""
OUTSIDE = """
return [...document.querySelectorAll('svg text')].filter(text => {
    const own = text.getBoundingClientRect(), box = text.closest('svg').getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
}).map(text => text.textContent)
"""
OVERLAPPING = """
const apart = (a, b) =>
    a.left >= b.right - 1 || b.left >= a.right - 1 || a.top >= b.bottom - 2 || b.top >= a.bottom - 2;
return [...document.querySelectorAll('svg')].flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    return texts.flatMap(([a, x], i) => texts.slice(i + 1).filter(([, y]) => !apart(x, y)).map(([b]) => [a, b]));
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser that shows a report on the rich records, and logs what it is asked to load."""
    folder = tmp_path_factory.mktemp("browser")
    report.write(rich(folder / "records"), folder / "out")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    for argument in (*ARGUMENTS, *root, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.page = (folder / "out" / "index.html").as_uri()
        show(driver, 1280)
        yield driver
    finally:
        driver.quit()


def show(driver: Any, width: int, scheme: str = "light") -> None:
    """Load the page anew at a width in CSS pixels."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme_wanted})
    driver.get(driver.page)


def test_it_loads_nothing_and_complains_of_nothing(browser: Any) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    by_page = [each["request"]["url"] for each in asked if each["documentURL"] == browser.page]
    assert by_page[0] == browser.page
    assert [url for url in by_page[1:] if not url.startswith("data:")] == []
    assert browser.get_log("browser") == []


def test_what_it_quotes_does_not_run(browser: Any) -> None:
    assert browser.title.startswith("HATAM and its peers")
    assert browser.execute_script("return document.scripts.length") == 0
    assert "<script>" in browser.execute_script("return document.querySelector('table').innerText")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window_or_cut(browser: Any, width: int) -> None:
    show(browser, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(OUTSIDE) == []
    assert browser.execute_script(OVERLAPPING) == []


def test_every_picture_is_told_in_words(browser: Any) -> None:
    words = browser.execute_script(WORDS)
    assert len(words) > 15
    assert all(text and any(char.isdigit() for char in text) for text in words)
    assert browser.execute_script("return document.querySelectorAll('th:not([scope])').length") == 0


def test_the_keyboard_reaches_what_a_pointer_does(browser: Any) -> None:
    show(browser, 1280)
    active = browser.switch_to
    seen = []
    for _ in range(30):
        active.active_element.send_keys("\ue004")  # Tab
        element = active.active_element
        outline = element.value_of_css_property("outline-style")
        seen.append((element.tag_name, element.get_attribute("class"), outline))
    assert seen[0][:2] == ("a", "skip")
    assert {"a", "summary", "div"} <= {tag for tag, _, _ in seen}  # a div is the box in which a table scrolls
    assert all(outline == "solid" for _, _, outline in seen)
    summary = browser.find_element("css selector", "summary")
    summary.send_keys("\ue007")  # Enter
    assert summary.find_element("xpath", "..").get_attribute("open") is not None


def test_the_page_follows_the_dark_scheme(browser: Any) -> None:
    colours = "const s = getComputedStyle(arguments[0]); return [s.backgroundColor, s.color]"
    tick = "const t = document.querySelector('svg text'); return getComputedStyle(t).fill"
    seen = {}
    for scheme in ("light", "dark"):
        show(browser, 1280, scheme)
        body = browser.find_element("css selector", "body")
        seen[scheme] = (*browser.execute_script(colours, body), browser.execute_script(tick))
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True))
    assert seen["dark"][1] == seen["dark"][2]
