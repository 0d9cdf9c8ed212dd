"""What is published: the contents and the metadata of sdist and wheel, built without network, and a light import."""

from __future__ import annotations

import ctypes
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import hatam
from hatam.fused import cpu

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "*_cache", "__pycache__", "*.egg-info", "build", "dist", "runs", "data"
)
# The kernel for one kind of processor alone compiles in a fraction of the time.
FLAGS = {"CFLAGS": "-DHATAM_ONE_TARGET"}


def build(kind: str, source: Path, out: Path, **environment: str) -> Path:
    """Build a tree as an installer does, in this environment."""
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    environment = {**os.environ, **FLAGS, **environment}
    subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist of a tree in which a kernel was built before."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_COPIED)
    (folder / "tree/src/hatam/fused/_cpu.so").touch()
    made = build("sdist", folder / "tree", folder / "out")
    assert made.name == f"hatam-{hatam.__version__}.tar.gz"
    assert made.stat().st_size < 3e6
    with tarfile.open(made) as archive:
        archive.extractall(folder, filter="data")
    return folder / made.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    return build("wheel", sdist, sdist.parent / "wheel")


def test_the_sdist_has_what_tests_and_docs_need(sdist: Path) -> None:
    """Every file of the tree but what was built; in a clone, what Git has."""
    names = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert set(listed.stdout.split()) <= names
    assert {"tests/test_package.py", "results/history.json", "docs/figures/landscape.svg", "Makefile"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_the_wheel_has_the_library_alone(wheel: Path) -> None:
    """One wheel for all Pythons of a platform."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert wheel.name.startswith(f"hatam-{hatam.__version__}-py3-none-")
    assert not wheel.name.endswith("-any.whl")
    assert {name.partition("/")[0] for name in names} == {"hatam", f"hatam-{hatam.__version__}.dist-info"}
    code = {f"hatam/{path.relative_to(ROOT / 'src/hatam')}" for path in (ROOT / "src/hatam").rglob("*.py")}
    data = {"py.typed", "bench/report/page.css", "bench/report/page.html.j2", "fused/cpu.h", "fused/cpu_loops.h"}
    assert code | {f"hatam/{name}" for name in data} <= set(names)


def test_the_wheel_has_the_kernel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract("hatam/fused/_cpu.so", tmp_path)
    assert ctypes.CDLL(library).hatam_layout() == cpu.LAYOUT


def test_without_a_compiler_there_is_a_wheel_without_the_kernel(sdist: Path, tmp_path: Path) -> None:
    shutil.copytree(sdist, tmp_path / "tree", ignore=shutil.ignore_patterns("build", "tests", "docs"))
    with zipfile.ZipFile(build("wheel", tmp_path / "tree", tmp_path / "out", CC="false")) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


def test_metadata(wheel: Path) -> None:
    """torch alone is required, the licence is an SPDX expression, the README is whole; CITATION.cff has the version."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"hatam-{hatam.__version__}.dist-info/METADATA").decode()
    metadata, readme = email.message_from_string(text), (ROOT / "README.md").read_text(encoding="utf-8")
    assert [x for x in metadata.get_all("Requires-Dist", []) if "extra ==" not in x] == ["torch>=2.6"]
    assert (metadata["License-Expression"], metadata["License-File"]) == ("MIT", "LICENSE")
    assert text.partition("\n\n")[2].strip() == readme.strip()
    assert f"\nversion: {hatam.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_import_is_light() -> None:
    """Nothing of an extra, and no compiler of torch's, which takes seconds to import, unless torch itself has it."""
    code = "import sys, torch; before = {*sys.modules}; import hatam, hatam.testing; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = "pandas optuna matplotlib jax optax sklearn scipy typer triton torchao sympy torch._dynamo hatam.bench"
    assert not {*done.stdout.split()} & {*heavy.split()}


def test_checkpoints_are_loaded_as_weights_only() -> None:
    """In code and docs: what is loaded cannot run code. Ruff refuses pickle.loads."""
    folders = ("src", "examples", "benchmarks", "research", "docs")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    for path in (ROOT / "README.md", *found):
        loads = re.findall(r"torch\.load\(.*", path.read_text(encoding="utf-8"))
        assert all("weights_only=True" in line for line in loads), path
