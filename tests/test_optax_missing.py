"""HATAM without JAX: it is not imported, and what needs it says so."""

from __future__ import annotations

import subprocess
import sys


def test_jax_is_imported_by_hatam_optax_alone() -> None:
    lines = [
        "import sys, hatam",
        "assert not sys.modules.keys() & {'jax', 'optax'}, 'imported'",
        "sys.modules['jax'] = None",
        "import hatam.optax",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: hatam.optax needs JAX and Optax" in done.stderr
    assert "pip install 'hatam[jax]'" in done.stderr
