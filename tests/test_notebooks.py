"""The notebooks run, and what they store is what they give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[<+−-]*\d[\d.,]*(e[+-]?\d+)?")
ABSOLUTE = re.compile(r"(?<![\w.:/<])/(?:home|root|tmp|usr|var|opt|work|Users|private|mnt)\b|\b[A-Z]:\\")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def texts(cell: Any) -> list[str]:
    """What each output of a cell says, by its kind and in its shortest form."""
    found = []
    for output in cell.outputs:
        text = output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")
        # Where figures come from training, other processors and versions of torch round in another way.
        text = NUMBER.sub("#", text) if "trained" in cell.metadata.get("tags", []) else text
        found.append(" ".join([output.output_type, output.get("name", ""), *text.split()]))
    return found


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_training", "own_model", "tune_gamma"]


@every_notebook
def test_what_is_stored(path: Path) -> None:
    """Small files, whole outputs, no trace of the machine that made them, links that lead somewhere."""
    assert path.stat().st_size <= 60_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.metadata.keys() <= {"tags"}
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            said = [output.get("text", ""), *(x for kind, x in output.get("data", {}).items() if "text" in kind)]
            assert not any(map(ABSOLUTE.search, said))
    for cell in notebook.cells:
        for target in re.findall(r"\]\((?!https?:)([^)\s#]+)", cell.source if cell.cell_type == "markdown" else ""):
            assert (path.parent / target).exists(), target


@every_notebook
@pytest.mark.timeout(1200)  # a minute of one core, which others may use too
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives what it stores, and leaves nothing where it ran."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    work = tmp_path / "work"
    work.mkdir()
    stored, run = (nbformat.read(path, as_version=4) for _ in range(2))
    where = {"metadata": {"path": str(work)}}
    NotebookClient(run, kernel_name="python3", resources=where, coalesce_streams=True).execute()
    for old, new in zip(stored.cells, run.cells, strict=True):
        if old.cell_type == "code":
            assert texts(new) == texts(old), old.source
    assert not list(work.iterdir())
