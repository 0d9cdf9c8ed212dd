"""The study for a GPU, on the CPU with a small network and few images: its optimizers, its runs, what it imports."""

from __future__ import annotations

import gzip
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hatam.bench.contenders import parse
from hatam.bench.tasks import Data, Split, fashion
from hatam.bench.tasks.scores import cross_entropy

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"WIDTHS": (8, 8, 16), "BATCH": 32, "EPOCHS": 4, "LRS": (0.01, 0.02), "SEEDS": (41000,)}
ABSENT = (
    "cycler dateutil jinja2 joblib matplotlib mnist1d optuna pandas platformdirs pytorch_optimizer rdata rich "
    "schedulefree scipy sklearn sqlalchemy torchvision typer xarray"
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("gpu_study")
    for name, value in SMALL.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set in the published format; the first pixel says the class."""
    path, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for kind, n in (("train", 96), ("t10k", 40)):
        images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, n, dtype=np.uint8)
        images[:, 0, 0] = labels
        for file, content in zip(fashion.FILES[kind], (images, labels), strict=True):
            head = bytes([0, 0, 8, content.ndim]) + np.array(content.shape, ">u4").tobytes()
            (path / file).write_bytes(gzip.compress(head + content.tobytes()))
    return path


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_schedule_free_is_its_authors(script: Any, weight_decay: float) -> None:
    from schedulefree import AdamWScheduleFreePaper

    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64)) for n in (5, 3)] for _ in range(2))
    options = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": weight_decay}
    own, package = script.ScheduleFree(ours, **options), AdamWScheduleFreePaper(theirs, **options)
    package.train()
    for step in range(20):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator, dtype=a.dtype) * a.detach() + a.detach()
            b.grad = a.grad.clone()
        own.param_groups[0]["lr"] = package.param_groups[0]["lr"] = 0.1 * min(1.0, (step + 1) / 5, (20 - step) / 5)
        own.step()
        package.step()
        torch.testing.assert_close(ours, theirs)
    y = [p.detach().clone() for p in ours]
    package.eval()
    with own.straightened():
        torch.testing.assert_close(ours, theirs)
        assert not torch.allclose(ours[0], y[0])
    torch.testing.assert_close([p.detach() for p in ours], y, rtol=0, atol=0)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", ["adamw", "sam", "schedule-free", "hatam"])
def test_contenders_are_those_of_the_harness(script: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights after some steps, in float64."""
    x, y = torch.rand(96, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(96) % 10
    x[:, 0, 0, 0] = y / 255
    seen, ended, moved = [], [], fashion.moved
    monkeypatch.setattr(fashion, "moved", lambda x, generator: seen.append(x) or x)
    monkeypatch.setattr(script, "evaluated", lambda model, *rest, **more: ended.extend(model.parameters()) or {})
    script.train(script.Job(name, 0.01, 1, 5), Data(*[Split(x, y)] * 3))
    monkeypatch.setattr(fashion, "moved", moved)
    torch.manual_seed(1)
    model = fashion.resnet(script.WIDTHS)
    more = ",rho=0.05" if name == "sam" else ""
    contender, options = parse(f"{name}:lr=0.01,weight_decay=0.1,beta1=0.9{more}", "mnist1d-mlp")
    trainer = contender.train(model, cross_entropy, options)
    for step, images in enumerate(seen):
        trainer.arrive(step, len(seen), 0.05, 0.01)
        trainer.step(images, (images[:, 0, 0, 0] * 255).round().long())
    assert len(seen) == 5
    torch.testing.assert_close(ended, [*model.parameters()], rtol=1e-4, atol=1e-6)


def test_the_network_is_resnet_18() -> None:
    """For one channel and small images: torchvision's, with its weights, gives the same."""
    from torchvision import models

    torch.manual_seed(0)
    theirs, ours = models.resnet18(num_classes=10), fashion.resnet((64, 64, 64, 128, 128, 256, 256, 512, 512))
    theirs.conv1, theirs.maxpool = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.Identity()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-3, atol=1e-4)


def test_it_runs_where_there_is_torch_alone_and_goes_on(script: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.json"
    arguments = ["--data", str(folder), "--device", "cpu", "--out", str(out)]
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({ABSENT.split()}))\n"
        f"import gpu_study\nvars(gpu_study).update({SMALL})\ngpu_study.main({arguments})"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text(encoding="utf-8"))
    runs = list(record["runs"].values())
    assert [run["contender"] for run in runs] == [name for name in script.CONTENDERS for _ in script.LRS] + [
        *script.CONTENDERS
    ]
    assert [run["steps"] for run in runs] == [2] * 8 + [8] * 4
    assert ["test" in run for run in runs] == [False] * 8 + [True] * 4
    assert [run["gradients_per_step"] for run in runs[-4:]] == [1, 2, 1, 1]
    for run in runs[-4:]:
        tried = {each["lr"]: each["validation"] for each in runs[:8] if each["contender"] == run["contender"]}
        assert tried[run["lr"]] == max(tried.values())
    rows = importlib.import_module("gpu_study").table(out).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:6]] == [f"| {name}" for name in script.CONTENDERS]
    assert rows[-1].startswith("CPU, torch")
    lost = [key for key, run in record["runs"].items() if run["contender"] == "hatam"][-1]
    expected = record["runs"].pop(lost)
    out.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(SystemExit, match="the time is over"):
        script.main([*arguments, "--minutes", "0"])
    script.main(arguments)
    again = json.loads(out.read_text(encoding="utf-8"))["runs"]
    assert list(again.values())[:-1] == runs[:-1]
    assert {**again[lost], "seconds": 0} == {**expected, "seconds": 0}


def test_where_the_images_are_to_be_is_said(script: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script.FOLDERS = (tmp_path,)
    with pytest.raises(SystemExit):
        script.main([])
    assert f"no Fashion-MNIST in {tmp_path}: give the folder of its files with --data" in capsys.readouterr().err
