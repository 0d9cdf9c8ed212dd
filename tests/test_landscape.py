"""The picture of the loss around minima."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import bits, generator
from torch import nn
from typer.testing import CliRunner

from hatam.bench.cli import app
from hatam.bench.landscape import _generators, draw, filter_normalized, surface


def test_directions_are_as_long_as_the_filters() -> None:
    w = torch.randn(4, 3, 2, generator=generator()) * torch.tensor([0.1, 1.0, 5.0, 0.0])[:, None, None]
    d = filter_normalized(w, generator(1))
    torch.testing.assert_close(d.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))
    assert not filter_normalized(torch.ones(5), generator()).any()


def test_the_surface_of_a_quadratic() -> None:
    """The middle is the loss where the model is, opposite corners of an even function agree, and nothing has moved."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    model[0].bias.data.zero_()
    w = model[0].weight
    before, buffers = [bits(p) for p in model.parameters()], [bits(b.float()) for b in model.buffers()]
    x = torch.randn(16, 3, generator=generator())
    start = w.detach().clone()
    grid = torch.tensor(surface(model, lambda: (w - start).square().sum() + 0 * model(x).sum(), 0, points=5, span=0.5))
    assert grid[2, 2] == 0
    torch.testing.assert_close(grid, grid.flip(0, 1))
    torch.testing.assert_close(grid[2, 4], grid[2, 0])
    assert grid[2, 4] > grid[2, 3] > 0
    assert [bits(p) for p in model.parameters()] == before
    assert [bits(b.float()) for b in model.buffers()] == buffers
    assert model.training


def test_the_command(tmp_path: Path) -> None:
    """Two contenders on one pair of axes; the numbers are beside the picture."""
    out = tmp_path / "around.svg"
    command = ["landscape", "--task", "diabetes", "--contender", "adamw", "--contender", "hatam", "--steps", "4"]
    done = CliRunner().invoke(app, [*command, "--points", "5", "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "around.json").read_text(encoding="utf-8"))
    assert [one["contender"] for one in record["surfaces"]] == ["adamw", "hatam"]
    assert all(len(one["loss"]) == 5 == len(one["loss"][0]) for one in record["surfaces"])
    text = out.read_text(encoding="utf-8")
    assert "adamw: " in text
    assert "training loss" in text


def test_one_that_diverged_takes_no_other_s_picture(tmp_path: Path) -> None:
    flat, lost = [[1.0] * 3] * 3, [[math.nan] * 3] * 3
    surfaces = [{"contender": name, "loss": loss, "validation": 0.5} for name, loss in (("a", flat), ("b", lost))]
    draw({"surfaces": surfaces, "span": 1.0}, tmp_path / "one.svg")
    assert (tmp_path / "one.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match="all diverged"):
        draw({"surfaces": surfaces[1:], "span": 1.0}, tmp_path / "none.svg")


def test_directions_are_not_the_first_weights() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 100)
    w = model.weight.detach()
    for rng in _generators(0):
        d = filter_normalized(w, rng)
        cosine = (d * w).sum() / (d.norm() * w.norm())
        assert abs(float(cosine)) < 0.05
