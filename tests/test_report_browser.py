"""The page in a real browser: it loads its figures alone, fits, works by keyboard, and runs nothing that it quotes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import browsing
import pandas as pd
import pytest
from test_tables import frame

from hatam.bench.report import page

pytestmark = browsing.needed


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser that shows a page."""
    folder = tmp_path_factory.mktemp("browser")
    hostile = frame({"adamw": [90.0, 91.0], "<script>alert(1)</script>" + "x" * 60: [91.0, 93.0]}, task="<b>u</b>")
    page.write(pd.concat([frame(), hostile]), "records", folder / "out")
    with browsing.started(folder) as driver:
        driver.page = (folder / "out" / "index.html").as_uri()
        browsing.show(driver, driver.page, 1280)
        yield driver


def test_it_loads_its_figures_alone_and_complains_of_nothing(browser: Any) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    by_page = [each["request"]["url"] for each in asked if each["documentURL"] == browser.page]
    assert by_page[0] == browser.page
    folder = browser.page.rpartition("/")[0]
    others = [url for url in by_page[1:] if not url.startswith("data:")]
    assert sorted(others) == [f"{folder}/{kind}-{i}.svg" for kind in ("cost", "curves") for i in (0, 1)]
    assert browser.get_log("browser") == []


def test_what_it_quotes_does_not_run(browser: Any) -> None:
    assert browser.title.startswith("HATAM and its peers")
    assert browser.execute_script("return document.scripts.length") == 0
    assert "<script>" in browser.execute_script("return document.body.innerText")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(browser: Any, width: int) -> None:
    browsing.show(browser, browser.page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_every_figure_is_told_in_words_and_every_header_has_a_scope(browser: Any) -> None:
    words = browser.execute_script("return [...document.images].map(image => image.alt)")
    assert len(words) == 4
    assert all("Mean test scores: adamw 9" in text for text in words)
    assert browser.execute_script("return document.querySelectorAll('th:not([scope])').length") == 0


def test_the_keyboard_reaches_the_tables(browser: Any) -> None:
    browsing.show(browser, browser.page, 1280)
    seen = []
    for _ in range(3):
        browser.switch_to.active_element.send_keys("\ue004")  # Tab
        element = browser.switch_to.active_element
        seen.append((element.tag_name, element.value_of_css_property("outline-style")))
    assert seen == [("a", "solid"), ("div", "solid"), ("div", "solid")]


def test_the_page_follows_the_dark_scheme(browser: Any) -> None:
    colours = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    seen = {}
    for scheme in ("light", "dark"):
        browsing.show(browser, browser.page, 1280, scheme)
        seen[scheme] = browser.execute_script(colours)
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True))
