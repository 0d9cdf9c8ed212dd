"""Text that every Python brings: its documentation and its standard library.

It depends on the version of Python, down to the patch release, and on nothing else; records name that version.
"""

from __future__ import annotations

import ast
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

VERSION = platform.python_version()

# Chapters of the standard library and the modules and packages of each, all of them in Python 3.10 to 3.14.
CHAPTERS: dict[str, tuple[str, ...]] = {
    "numbers": ("_pydecimal", "fractions", "numbers", "random", "statistics"),
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "queue", "selectors", "subprocess", "threading"),
    "internet": ("ftplib", "http", "imaplib", "ipaddress", "smtplib", "socketserver", "urllib", "wsgiref", "xmlrpc"),
    "mail": ("email", "mailbox"),
    "development": ("bdb", "doctest", "pdb", "pydoc", "unittest"),
    "files": ("_pyio", "fileinput", "gzip", "os", "pathlib", "shutil", "tarfile", "tempfile", "zipfile"),
    "language": ("ast", "dis", "enum", "importlib", "inspect", "symtable", "traceback", "typing"),
    "programs": ("argparse", "cmd", "configparser", "getopt", "logging", "optparse"),
}


def topics() -> list[str]:
    """The chapters of the language reference that ``help()`` shows."""
    from pydoc_data.topics import topics as texts

    return [texts[key] for key in sorted(texts)]


@cache
def docstrings(chapter: str) -> list[str]:
    """The docstrings of a chapter, each once, in the order of their files."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found: dict[str, None] = {}
    for source in sources(CHAPTERS[chapter]):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                found[text] = None
    return list(found)


def sources(modules: Sequence[str]) -> Iterator[str]:
    """The source files of modules and packages of the standard library, their tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for module in modules:
        for path in [root / f"{module}.py", *sorted((root / module).rglob("*.py"))]:
            if path.exists() and not {"test", "tests"} & set(path.relative_to(root).parts):
                yield path.read_text(encoding="utf-8")
