"""Made-up records of every kind that a report has to bear."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from hatam.bench import records
from hatam.bench.records import Run

HOSTILE = '<script>document.title="hit"</script>'
LABELS = (
    "adamw",
    "sam",
    "hatam",
    "hatam:gamma=3",
    HOSTILE,
    "an-endless-name:gamma=3.25,beta_c=0.99,fade=0.2",
    "$x_{|*",
)


def put(root: Path, label: str, seed: int, score: float, task: str = "mnist1d-mlp", **changed: Any) -> Path:
    """Write the record of a run that ended at ``score``; ``result``, ``time`` or what is run may be given too."""
    result, time = changed.pop("result", {}), changed.pop("time", {"step_median_s": 0.01, "steps_s": 1.0})
    told = {key: changed.pop(key) for key in ("metric", "started") if key in changed}
    contender = "hostile" if label == HOSTILE else label.partition(":")[0]
    options = {"lr": 0.03, **({"gamma": 3} if ":" in label else {}), **changed.pop("options", {})}
    run = Run(task, label, contender, options, seed, **{"steps": 100, "batch_size": 8, "warmup": 0.05, **changed})
    final = {} if run.purpose == "tune" else {"test": score, "hessian_lambda_max": 2.0 + score / 100}
    path = run.path(root)
    record = {
        "schema": 1,
        "run": vars(run),
        "curve": [{"step": s, "train_loss": 1.0, "validation": score - (100 - s) / 50} for s in range(10, 101, 10)],
        "result": {"status": "ok", "validation": score, **final, **result},
        "time": time,
        "gradients_per_step": 2.0 if contender == "sam" else 1.0,
        **told,
    }
    records.write(path, record)
    return path


def rich(root: Path) -> Path:
    """Tasks in both directions and an unknown one, shifts, sharpness, tuning, divergence, damage and other files."""
    rng = random.Random(0)
    for task, middle in (("mnist1d-mlp", 70.0), ("mnist1d-conv", 95.0), (f"unknown {HOSTILE[:8]}", 2.0)):
        for i, label in enumerate(LABELS):
            for seed in range(4):
                score = middle + (0.4 * i + rng.gauss(0, 0.3)) * (1 if middle > 50 else -0.01)
                shifts = {name: {str(s): score - 3 * s for s in (1.0, 2.0)} for name in ("noise", "<i>shear")}
                measured = {"lambda_max": 2 + rng.random(), "trace": 90 + rng.random()}
                put(root / "study", label, seed, score, task, result={"shifts": shifts, "sharpness": measured})
    lost = {"status": "diverged", "validation": math.nan, "test": math.nan, "hessian_lambda_max": math.nan}
    put(root / "study", "msam", 0, math.nan, result=lost)
    for i in range(12):
        options = {"lr": 10 ** (-3 + i / 5), "gamma": i % 3, "modulator_cap": (None, math.inf, 3.0)[i % 3]}
        put(root / "tune", "hatam", 9, 70 - (i - 6) ** 2 / 9, purpose="tune", options=options)
        put(root / "tune", "adamw", 9, 60 - (i - 3) ** 2 / 9, purpose="tune", options={"lr": options["lr"]})
    (root / "speed.json").write_text('{"benchmark": "speed"}')
    damaged = root / "study" / "mnist1d-mlp" / "adamw-0123456789" / "<b>" / "0.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text('{"run": {"task": "mnist1d-mlp"')
    return root
