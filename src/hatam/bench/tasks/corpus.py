"""Text that a machine with the extra ``bench`` has: Python's documentation, its standard library, sources of packages.

It depends on the version of Python, down to the patch release, and :func:`packaged` on those of the packages too.
Records name these versions.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
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

# Packages with long docstrings, of the extra ``bench`` or torch's own requirement, and the distribution of each.
PACKAGES = {
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
}
TABLES = {"encodings"}  # modules that are no text
LENGTHS = range(4000, 200_000)  # bytes of a file: a shorter one is mostly imports, a longer one a table
LINE = 20  # bytes from which on a line tells texts apart
KNOWN = 0.3  # share of the lines, of the shorter of two files or of one, beyond which it repeats others


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
    for path in _files(Path(sysconfig.get_path("stdlib")), modules):
        yield path.read_text(encoding="utf-8")


def _files(root: Path, modules: Iterable[str]) -> Iterator[Path]:
    for module in modules:
        for path in [root / f"{module}.py", *sorted((root / module).rglob("*.py"))]:
            if path.exists() and not {"test", "tests"} & set(path.relative_to(root).parts):
                yield path


@cache
def packaged() -> list[Path]:
    """The source files of the standard library and of ``PACKAGES``.

    Their order is that of a digest of their names: as good as random, and another version changes it little.
    """
    roots = {Path(sysconfig.get_path("stdlib")): sorted(sys.stdlib_module_names - TABLES)}
    for package in PACKAGES:
        spec = find_spec(package)
        if spec and spec.origin:
            roots.setdefault(Path(spec.origin).parent.parent, []).append(package)
    paths = {path.relative_to(root).as_posix(): path for root, names in roots.items() for path in _files(root, names)}
    ordered = sorted(paths, key=lambda name: hashlib.sha256(name.encode()).digest())
    made = "__config__.py"  # when a package was built, with the paths of that machine
    return [paths[name] for name in ordered if paths[name].stat().st_size in LENGTHS and not name.endswith(made)]


def fingerprint() -> str:
    """A digest of the names and sizes of these files."""
    listed = "\n".join(f"{path.name} {path.stat().st_size}" for path in packaged())
    return hashlib.sha256(listed.encode()).hexdigest()[:10]


def versions() -> dict[str, str]:
    """Of Python and of ``PACKAGES``."""
    return {"python": VERSION, **{name: metadata.version(name) for name in PACKAGES.values()}}


def missing() -> str | None:
    """The packages that are not installed, and the remedy."""
    absent = [name for package, name in PACKAGES.items() if find_spec(package) is None]
    return f"not installed: {', '.join(absent)}; pip install 'hatam[bench]' {' '.join(absent)}" if absent else None


def distinct(paths: Iterable[Path]) -> Iterator[bytes]:
    """The contents of files, without what repeats files before it: copies, licences, what holds another file whole.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, text in (("a", "a line of its own, and long\\n"), ("b", "another one, as long as this\\n")):
        ...     _ = (folder / name).write_text(text), (folder / f"{name}-copy").write_text(text)
        >>> len(list(distinct(sorted(folder.iterdir()))))
        2
    """
    first: dict[bytes, int] = {}  # of every line, the file that had it first
    sizes: list[int] = []
    for path in paths:
        content = path.read_bytes()
        lines = {line for each in content.splitlines() if len(line := each.strip()) >= LINE}
        shared = Counter(first[line] for line in lines & first.keys())
        alike = any(n > KNOWN * min(len(lines), sizes[file]) for file, n in shared.items())
        if not alike and shared.total() <= KNOWN * len(lines):
            first.update(dict.fromkeys(lines - first.keys(), len(sizes)))
            sizes.append(len(lines))
            yield content
