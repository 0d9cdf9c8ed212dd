"""What HATAM works with, from the outcomes of the tests that show it: those marked ``compatible``.

python benchmarks/compatibility.py              run them, write results/compatibility.json, fill in the page
python benchmarks/compatibility.py --junit XML…   take the outcomes of runs that were made with pytest --junitxml=XML
python benchmarks/compatibility.py --render     fill in docs/compatibility.md from the record alone
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from common import ROOT, fill_in, read

from hatam.bench import files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECORD = "results/compatibility.json"
NAMES = {"Hugging Face Trainer": "transformers", "PyTorch Lightning": "lightning", "TensorBoard": "tensorboard"}
PACKAGES = ("torch", "transformers", "accelerate", "lightning", "timm", "tensorboard", "torchao")


def run() -> Path:
    """Run the marked tests; returns their outcomes."""
    found = ROOT / "runs/compatibility.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "compatible", "tests", f"--junitxml={found}"]
    subprocess.run(command, cwd=ROOT, check=False)
    return found


def measured(*found: Path) -> dict[str, Any]:
    """Counts of outcomes by what was shown, of one run or of several; a test has the outcome of its last run."""
    cases = {
        (case.get("classname"), case.get("name")): case
        for xml in found
        for case in ElementTree.parse(xml).iter("testcase")
    }
    outcomes: dict[str, dict[str, int]] = {}
    for case in cases.values():
        failed = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if failed else "skipped" if case.find("skipped") is not None else "passed"
        for shown in case.iterfind("properties/property[@name='compatible']"):
            counts = outcomes.setdefault(shown.attrib["value"], dict.fromkeys(("passed", "failed", "skipped"), 0))
            counts[outcome] += 1
    versions = {name: version(name) for name in PACKAGES}
    return {**files.environment(), "versions": versions, "outcomes": dict(sorted(outcomes.items()))}


def table(record: dict[str, Any]) -> str:
    """A row for each host and what was shown there."""
    lines = ["| host | what | tests passed |", "|---|---|---:|"]
    for shown, counts in record["outcomes"].items():
        host, _, what = shown.partition(": ")
        version = record["versions"].get(NAMES.get(host, host))
        name = f"{host} {version}" if version else host
        others = "".join(f", {n} {outcome}" for outcome, n in counts.items() if outcome != "passed" and n)
        lines.append(f"| {name} | {what} | {counts['passed']}{others} |")
    return "\n".join(lines) + f"\n\ntorch {record['versions']['torch']}, Python {record['python']}, on the CPU."


def conformance() -> str:
    """What became of each of torch's own tests."""
    listed = tomllib.loads((ROOT / "tests/conformance.toml").read_text(encoding="utf-8"))
    run, gpu = listed["run"]["names"], listed["gpu"]["names"]
    text = f"{len(run)} run as they are, {len(listed['adapted'])} adapted, {len(gpu)} where there is a GPU, "
    text += f"{len(listed['not applicable'])} not applicable:\n\n| test of torch | here |\n|---|---|\n"
    rows = dict.fromkeys(run, "run") | dict.fromkeys(gpu, "on a GPU")
    rows |= {name: f"adapted: {how}" for name, how in listed["adapted"].items()}
    rows |= {name: f"not applicable: {why}" for name, why in listed["not applicable"].items()}
    return text + "\n".join(f"| {name} | {what} |" for name, what in sorted(rows.items()))


if __name__ == "__main__":
    if "--render" not in sys.argv[1:]:
        given = [Path(xml) for xml in sys.argv[2:]] if "--junit" in sys.argv else [run()]
        files.write(ROOT / RECORD, measured(*given))
    fill_in("docs/compatibility.md", "compatibility", table(read(RECORD)))
    fill_in("docs/compatibility.md", "conformance", conformance())
