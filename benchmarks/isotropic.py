"""Whether the modulator pays: HATAM beside ATAM, the same with S = 1, each tuned; a part of docs/results.md.

python benchmarks/isotropic.py
"""

from __future__ import annotations

import grids
from targets import STUDY
from verdicts import against

from hatam.bench import report
from hatam.bench.report import load
from hatam.bench.report.compared import comparisons

PAGE = "docs/results.md"
ISOTROPIC, ANISOTROPIC = "atam-decoupled", "hatam-relative"  # which differ in S alone


def table() -> str:
    """On which tasks S is better and worse than 1, and by how much."""
    compared, _ = comparisons(load.find(STUDY).entries)
    lines = []
    for budget in ("equal steps", "equal time"):
        some = [each for each in compared if each.budget == budget and each.of(ISOTROPIC)]
        lines.append(f"- At {budget}: {against(some, ISOTROPIC, 0.05, ANISOTROPIC).words}.")
    return "\n".join([*lines, "", report.brief(STUDY, (ISOTROPIC, ANISOTROPIC))])


if __name__ == "__main__":
    report.fill_in(grids.ROOT / PAGE, "isotropic", table())
