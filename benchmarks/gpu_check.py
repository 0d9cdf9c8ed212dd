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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results/gpu"
if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton asks at its import

import gpu_hosts  # noqa: E402
import gpu_right  # noqa: E402
import torch  # noqa: E402

from hatam import fused  # noqa: E402
from hatam.bench import records  # noqa: E402
from hatam.fused import gpu  # noqa: E402


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


def environment(interpret: bool, commit: str | None) -> dict[str, Any]:
    """Where the record comes from."""
    import triton

    return {
        **records.environment(),
        **({"commit": commit, "modified": None} if commit else {}),
        "device": "interpreter" if interpret else torch.cuda.get_device_name(),
        "triton": triton.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


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
    parser.add_argument("--rounds", type=int, default=30, help="of the timing (default 30)")
    parser.add_argument("--commit", help="of a source tree that is no checkout")
    parser.add_argument("--out", type=Path, help=f"folder of the records (default {RECORDS.relative_to(ROOT)})")
    options = parser.parse_args()
    if options.interpret and options.out is None:
        parser.error("--interpret needs --out: what the interpreter does is no result")
    if not options.interpret and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU; --interpret checks the kernel without one")
    return options


def main() -> int:
    """Check, time, and write the record after every part."""
    options = arguments()
    device, out = "cpu" if options.interpret else "cuda", options.out or RECORDS
    where = environment(options.interpret, options.commit)
    fused.KERNELS[device] = gpu
    checks: dict[str, bool] = {}
    failures: dict[str, str] = {}
    for name, test in (gpu_right.checks(device) | (gpu_hosts.checks() if device == "cuda" else {})).items():
        _, failure = attempt(lambda test=test: of_the_kernel(test))
        checks[name] = failure is None
        failures |= {name: failure} if failure else {}
        print(f"{'ok  ' if failure is None else 'FAIL'}  {name}", flush=True)
    if device == "cuda":
        said, passed = torchs_own_tests()
        print(f"torch's own tests: {said}", flush=True)
        checks |= {} if passed is None else {"torch's own tests": passed}
        where |= {"torch's own tests": said}
    records.write(out / "checks.json", {**where, "checks": checks, "failures": failures})
    print(f"{sum(checks.values())} of {len(checks)} checks are right; see {out}")
    if device == "cuda" and not options.skip_speed:
        time_all(out / "speed.json", where, options.rounds)
    return 0 if all(checks.values()) else 1


def time_all(out: Path, where: dict[str, Any], rounds: int) -> None:
    """The speed of every model and contender; the record is written after each."""
    import gpu_speed

    record: dict[str, Any] = {**where, "speed": [], "failures": {}}
    for name, part in gpu_speed.parts(rounds).items():
        result, failure = attempt(part)
        record["failures"] |= {name: failure} if failure else {}
        record["speed"] += [result] if result else []
        print(json.dumps(result) if result else f"FAIL  {name}", flush=True)
        records.write(out, record)


if __name__ == "__main__":
    sys.exit(main())
