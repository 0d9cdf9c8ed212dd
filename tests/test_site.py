"""The site builds without a warning and without a network, its links lead somewhere, and it fits in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import browsing
import pytest

pytest.importorskip("furo", reason="the extra docs is not installed")
ROOT = Path(__file__).resolve().parent.parent
PAGES = ("index.html", "algorithm.html", "decisions.html", "notebooks/tune_gamma.html", "api.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_links(site: Path) -> None:
    """To pages and headings that are there; nothing is loaded from elsewhere."""
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    for path, text in pages.items():
        for target in re.findall(r'(?:href|src)="([^"]+)"', re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)):
            url = urlsplit(target)
            if url.scheme in ("http", "https", "data"):
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert there.exists(), (path.name, target)
            if url.fragment and there in pages and there.name != "search.html":
                assert f'id="{unquote(url.fragment)}"' in pages[there], (path.name, target)
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', text)
        assert loaded == [], path.name


def test_formulas_and_listings(site: Path) -> None:
    """Formulas are MathML, listings come from the examples, and no file of the repository is a dead link."""
    text = (site / "algorithm.html").read_text(encoding="utf-8")
    assert text.count("<math") > 50
    assert r"\kappa" not in re.sub(r"<math.*?</math>", "", text, flags=re.DOTALL)
    assert "SaveStraightened" in (site / "trainers.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser."""
    with browsing.started(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@browsing.needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits(site: Path, browser: Any, width: int, scheme: str) -> None:
    """On a phone and on a desk, in light and dark; formulas have a size, images load, nobody complains."""
    for page in PAGES:
        browsing.show(browser, (site / page).as_uri(), width, scheme)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
        assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)"), page
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour)[:3])) > 380) == (scheme == "light"), page
        sizes = browser.execute_script("return [...document.querySelectorAll('math')].map(m => m.clientHeight)")
        assert all(size > 0 for size in sizes), page
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"], page
