"""Is the GPU kernel right, and how fast is it? For a machine with a CUDA GPU, torch and Triton; nothing is installed.

    make gpu-check                                       everything, into results/gpu/checks.json and speed.json
    python benchmarks/gpu_check.py --skip-speed          what is right alone
    python benchmarks/gpu_check.py --interpret --out d   a few checks in Triton's interpreter, without a GPU

A part that fails is recorded and the next one goes on. The exit status is 1 where anything was not right.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton asks at its import

import gpu_right
import gpu_speed
import torch
from common import ROOT

from hatam import fused
from hatam.bench import files
from hatam.fused import gpu


def attempt(part: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a part gives, and how it failed if it did."""
    try:
        return part(), None
    except Exception:
        return None, traceback.format_exc(limit=-6)


def of_the_kernel(test: Callable[[], None]) -> None:
    """A test that must have gone through the kernel: where it is not taken, all would be right, too."""
    taken, step = [], gpu.step
    gpu.step = lambda batch, o: taken.append(len(batch.params)) or step(batch, o)
    try:
        test()
    finally:
        gpu.step = step
    gpu_right.require(bool(taken), "the GPU kernel did not take these tensors")


def torchs_own_tests() -> tuple[str, bool | None]:
    """What torch's tests of its optimizers say of HATAM on the GPU, and whether all passed; None where not run."""
    absent = [name for name in ("pytest", "hypothesis", "expecttest") if importlib.util.find_spec(name) is None]
    if absent:
        return f"not run: {', '.join(absent)} not installed", None
    tests = [str(path) for path in sorted((ROOT / "tests").glob("test_conformance*.py"))]
    options = ["-q", "-k", "cuda", "-o", "addopts=", "-W", "default", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *tests], cwd=ROOT, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([*failed, *done.stdout.splitlines()[-1:]]), done.returncode == 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpret", action="store_true", help="a few checks in Triton's interpreter; needs --out")
    parser.add_argument("--skip-speed", action="store_true", help="check only")
    parser.add_argument("--rounds", type=int, default=10, help="of the timing (default 10)")
    parser.add_argument("--commit", help="of a source tree that is no checkout")
    parser.add_argument("--out", type=Path, help=f"folder of the records (default {gpu_speed.RECORDS})")
    options = parser.parse_args()
    if options.interpret and options.out is None:
        parser.error("--interpret needs --out: what the interpreter does is no result")
    if not (options.interpret or torch.cuda.is_available()):
        parser.error("there is no CUDA GPU; --interpret checks the kernel without one")
    return options


def main() -> int:
    """Check, time, and write the record after every part."""
    options = arguments()
    device, out = "cpu" if options.interpret else "cuda", options.out or ROOT / gpu_speed.RECORDS
    where = {
        **files.environment(),
        **({"commit": options.commit, "modified": None} if options.commit else {}),
        "device": "interpreter" if options.interpret else torch.cuda.get_device_name(),
        "triton": importlib.import_module("triton").__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    fused.KERNELS[device] = gpu
    failures: dict[str, str] = {}
    tests = gpu_right.checks(device)
    for name, test in tests.items():
        _, failure = attempt(partial(of_the_kernel, test))
        failures |= {name: failure} if failure else {}
        print(f"{'FAIL' if failure else 'ok  '}  {name}", flush=True)
    checks = {name: name not in failures for name in tests}
    if device == "cuda":
        said, passed = torchs_own_tests()
        print(f"torch's own tests: {said}", flush=True)
        checks |= {} if passed is None else {"torch's own tests": passed}
        where |= {"torch's own tests": said}
    files.write(out / "checks.json", {**where, "checks": checks, "failures": failures})
    print(f"{sum(checks.values())} of {len(checks)} checks are right; see {out}")
    if device == "cuda" and not options.skip_speed:
        record: dict[str, Any] = {**where, "speed": [], "failures": {}}
        for name, part in gpu_speed.parts(options.rounds).items():
            result, failure = attempt(part)
            record["failures"] |= {name: failure} if failure else {}
            record["speed"] += [result] if result else []
            print(json.dumps(result) if result else f"FAIL  {name}", flush=True)
            files.write(out / "speed.json", record)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
