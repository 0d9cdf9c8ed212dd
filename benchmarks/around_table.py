"""The table of :mod:`around`: means with 95% intervals, and differences to the bare optimizer, paired by seed."""

from __future__ import annotations

import math

from around import BASES, ROOT, TASKS, VARIANTS, runs

from hatam.bench.stats import Difference, estimate, holm, p_text, paired
from hatam.bench.tasks import find

PAGE = ROOT / "docs/around_your_optimizer.md"
START, END = "<!-- around:start -->", "<!-- around:end -->"
Key = tuple[str, str, str]  # task, optimizer, variant


def table(scores: dict[str, float], steps: int | None = None) -> str:
    """A row for each task and optimizer whose runs are all there. p is Holm's over the whole table."""
    found: dict[Key, dict[int, float]] = {}
    for task, base in ((task, base) for task in TASKS for base in BASES):
        each = {variant: runs("test", scores, task, base, variant, steps) for variant in VARIANTS}
        if all(own and all(str(run) in scores for run in own) for own in each.values()):
            found |= {
                (task, base, variant): {run.seed: scores[str(run)] for run in own} for variant, own in each.items()
            }
    if not found:
        return "Not run here."
    against = {key: paired(own, found[key[0], key[1], "bare"]) for key, own in found.items() if key[2] != "bare"}
    p = dict(zip(against, holm([math.nan if d is None else d.p for d in against.values()]), strict=True))
    titles = ["task, n", "optimizer", "bare", *(f"{variant} −, p" for variant in VARIANTS if variant != "bare")]
    lines = [f"| {' | '.join(titles)} |", "|---|---" + "|---:" * len(VARIANTS) + "|"]
    for task, base, _ in (key for key in found if key[2] == "bare"):
        cells = [f"{task} {'↑' if find(task).higher_is_better else '↓'}, {len(found[task, base, 'bare'])}", base]
        for variant in VARIANTS:
            key = (task, base, variant)
            mean = estimate(list(found[key].values()))
            cells.append(shown(against[key], p[key]) if key in against else f"{mean.mean:.4g} ± {mean.half_width:.2g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(found: Difference | None, p: float) -> str:
    """A difference with its interval and its corrected p, bold where it is significant."""
    if found is None:
        return "a run was lost"
    text = f"{found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}], {p_text(p)}"
    return f"**{text}**" if p < 0.05 else text


def show(scores: dict[str, float], steps: int | None) -> None:
    """Fill the table in where the docs have a place for it, or print that of a trial."""
    text = table(scores, steps)
    if steps:
        print(text)
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
