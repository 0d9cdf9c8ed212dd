"""Training that goes on elsewhere: in a new process, in AdamW, in HATAM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import VARIANTS, Falling, feed, generator, gradients, state_bits, through_a_file
from resume_here import STEPS, end, network, schedule_of, train
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from hatam import HATAM, to_adamw
from hatam.storage import REACH_STATE

PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
NARROW: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "m in bfloat16": (torch.float32, {"state_dtype": torch.bfloat16}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16, wide state": (torch.bfloat16, {"state_dtype": torch.float32}),
    "bfloat16, rounded at random": (torch.bfloat16, {"bf16_stochastic_round": True}),
    "float64": (torch.float64, {}),
}
KINDS = {**{name: (torch.float32, options) for name, options in VARIANTS.items()}, **NARROW}
CASES = {
    **{f"{kind}, {path}": (KINDS[kind][0], {**KINDS[kind][1], **PATHS[path]}) for kind in KINDS for path in PATHS},
    "AdamW's options": (torch.float32, {"gamma": 0.0}),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[bytes], list[bytes]]]:
    """Of every case: after all steps, and after half of them, a file, and the rest in a new process."""
    folder, saved, straight = tmp_path_factory.mktemp("resumed"), {}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, (dtype, options) in CASES.items():
            model = network(dtype)
            optimizer = HATAM(model.parameters(), 0.01, **options)
            schedule = schedule_of(optimizer)
            train(model, optimizer, schedule, 0, STEPS // 2)
            parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
            saved[name] = through_a_file({key: part.state_dict() for key, part in parts.items()})
            train(model, optimizer, schedule, STEPS // 2, STEPS)
            straight[name] = end(model, optimizer)
    finally:
        torch.set_num_threads(threads)
    torch.save(saved, folder / "saved.pt")
    script = Path(__file__).with_name("resume_here.py")
    started = jobs.Started(script, folder / "saved.pt", folder / "ends.pt", folder=folder)
    assert started.wait() == 0, started.output
    resumed = torch.load(folder / "ends.pt", weights_only=True)
    return {name: (straight[name], resumed[name]) for name in CASES}


@pytest.mark.compatible("checkpoints", "resumed in a new process, bit for bit, on every path and state dtype")
@pytest.mark.parametrize("name", CASES)
def test_resuming_in_a_new_process(name: str, ends: dict[str, tuple[list[bytes], list[bytes]]]) -> None:
    """A training is half of it, a file, and the rest in a new process: bit for bit, state and all."""
    straight, resumed = ends[name]
    assert straight == resumed


class Digits:
    """A network on scikit-learn's digits, and how well it does."""

    def __init__(self) -> None:
        x, y = load_digits(return_X_y=True)
        self.x, self.y = torch.as_tensor(x, dtype=torch.float32) / 16, torch.as_tensor(y)
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def train(self, optimizer: Optimizer, first: int, last: int) -> list[float]:
        losses = []
        for i in range(first, last):
            batch = torch.randint(1200, (64,), generator=torch.Generator().manual_seed(i))
            optimizer.zero_grad()
            loss = F.cross_entropy(self.model(self.x[batch]), self.y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def accuracy(self) -> float:
        with torch.no_grad():
            return float((self.model(self.x[1200:]).argmax(1) == self.y[1200:]).float().mean())


@pytest.mark.compatible("AdamW's checkpoints", "into HATAM and back in mid-training, on real data")
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_training_through_adamw_hatam_and_adamw(options: dict[str, Any]) -> None:
    """On real data, in mid-training, through files: no jump in the loss at either change, and it ends as well."""
    digits = Digits()
    adamw = AdamW(digits.model.parameters(), lr=3e-3)
    losses = digits.train(adamw, 0, 100)
    optimizer = HATAM(digits.model.parameters(), lr=3e-3, **options)
    optimizer.load_state_dict(through_a_file(adamw.state_dict()))
    losses += digits.train(optimizer, 100, 200)
    with optimizer.straightened():
        weights: list[Tensor] = [p.detach().clone() for p in digits.model.parameters()]
    for p, z in zip(digits.model.parameters(), weights, strict=True):
        p.data.copy_(z)
    back = AdamW(digits.model.parameters(), lr=3e-3)
    back.load_state_dict(through_a_file(optimizer.state_dict()))
    losses += digits.train(back, 200, 300)
    for change in (100, 200):
        assert sum(losses[change : change + 10]) < 1.1 * sum(losses[change - 10 : change])
    assert [back.state[p]["step"].item() for p in digits.model.parameters()] == [300] * 4
    alone = Digits()
    alone.train(AdamW(alone.model.parameters(), lr=3e-3), 0, 300)
    assert digits.accuracy() >= alone.accuracy() - 0.02 > 0.85


def test_what_adamw_carried_on_of_an_earlier_hatam_is_no_offset() -> None:
    """AdamW's checkpoint has all that it was loaded from, as it was; what HATAM itself goes on with is its own."""
    params = [nn.Parameter(torch.randn(5, 4, generator=generator()))]
    first = Falling(params, 0.01)
    feed(first, params, gradients(params, 5))
    with first.straightened():
        z = params[0].detach().clone()
    params[0].data.copy_(z)
    adamw = AdamW(params, 0.01)
    adamw.load_state_dict(first.state_dict())
    feed(adamw, params, gradients(params, 5))
    carried = through_a_file(adamw.state_dict())
    assert {"reach", "rms_ratio"} <= carried["state"][0].keys()
    again, before = HATAM(params, 0.01), params[0].detach().clone()
    again.load_state_dict(carried)
    with again.straightened():
        assert torch.equal(params[0], before)
    feed(again, params, gradients(params, 5), [0.01, 0.008, 0.006, 0.004, 0.002])
    resumed = HATAM(params, 0.01)
    resumed.load_state_dict(through_a_file(again.state_dict()))
    assert state_bits(resumed) == state_bits(again)


def test_amsgrad_of_a_group_is_refused() -> None:
    group = {"params": [nn.Parameter(torch.ones(2))], "amsgrad": True}
    with pytest.raises(ValueError, match="amsgrad=True is not supported"):
        HATAM([group])
    optimizer = HATAM([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="amsgrad=True is not supported"):
        optimizer.add_param_group(group)
    optimizer.add_param_group({**group, "amsgrad": False})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("optimizer", [HATAM, AdamW])
def test_state_of_a_bfloat16_model_goes_on_in_float32(optimizer: Any) -> None:
    """As torch does it: in bfloat16, v would stand still at the rate of 0.999. Wider state stays as it is."""
    narrow, wide = ([torch.nn.Parameter(torch.ones(3, dtype=dtype))] for dtype in (torch.bfloat16, torch.float32))
    made = optimizer(narrow, 0.01)
    narrow[0].grad = torch.ones(3, dtype=torch.bfloat16)
    made.step()
    loaded = HATAM(wide, 0.01)
    loaded.load_state_dict(made.state_dict())
    assert {loaded.state[wide[0]][key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    back = HATAM(narrow, 0.01)
    back.load_state_dict(loaded.state_dict())
    assert {back.state[narrow[0]][key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float32}


def test_an_adamw_checkpoint_leaves_each_group_its_own_options() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    adamw = AdamW([{"params": [p]} for p in params], betas=(0.8, 0.95))
    optimizer = HATAM([{"params": params[:1], "gamma": 0.1, "fade": 0.5}, {"params": params[1:]}])
    optimizer.load_state_dict(adamw.state_dict())
    assert [(group["gamma"], group["fade"]) for group in optimizer.param_groups] == [(0.1, 0.5), (0.2, 0.1)]
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)


@pytest.mark.parametrize("cast", [("step",), REACH_STATE], ids=["step", "others"])
def test_numbers_that_were_saved_in_bfloat16(cast: tuple[str, ...]) -> None:
    """They go on on a path that can read them."""
    ends = []
    for foreach in (None, False):
        param = nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8))
        optimizer = Falling([param], 1e-2, foreach=foreach)
        for loaded in (False, True):
            rng = generator()
            for _ in range(5):
                param.grad = torch.randn(8, 8, generator=rng)
                optimizer.step()
            if not loaded:
                saved = optimizer.state_dict()
                found = saved["state"][0]
                saved["state"][0] = {key: x.bfloat16() if key in cast else x for key, x in found.items()}
                optimizer.load_state_dict(saved)
        assert optimizer.state[param]["step"] == 10
        ends.append(param.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.bfloat16}, {"state_dtype": "8bit"}], ids=str)
def test_handing_over_to_adamw(options: dict[str, Any]) -> None:
    """The parameters are at z, and the next step is that of an AdamW with these moments."""
    if options.get("state_dtype") == "8bit":
        pytest.importorskip("torchao")
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    groups = [
        {"params": list(layer.named_parameters()), "lr": lr} for layer, lr in zip(model, (0.01, 0.02), strict=True)
    ]
    optimizer = Falling(groups, **options)
    feed(optimizer, list(model.parameters()), gradients(list(model.parameters()), 5))
    with optimizer.straightened():
        z = [p.detach().clone() for p in model.parameters()]
    adamw = to_adamw(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), z, strict=True))
    assert [(g["lr"], g["param_names"]) for g in adamw.param_groups] == [
        (0.01, ["weight", "bias"]),
        (0.02, ["weight", "bias"]),
    ]
    others = [nn.Parameter(q) for q in z]
    alone = AdamW([{"params": others[:2], "lr": 0.01}, {"params": others[2:], "lr": 0.02}], betas=(0.9, 0.95))
    for p, q in zip(model.parameters(), others, strict=True):
        assert {x.dtype for x in adamw.state[p].values()} == {torch.float32}
        alone.state[q] = {key: x.clone() for key, x in adamw.state[p].items()}
    row = gradients(others, 1, 9)
    feed(adamw, list(model.parameters()), row)
    feed(alone, others, row)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), others, strict=True))
    with pytest.raises(TypeError, match="must be a HATAM, not AdamW"):
        to_adamw(adamw)  # type: ignore[arg-type]


def test_handing_over_a_parameter_that_was_appended_to_a_named_group() -> None:
    model = nn.Linear(3, 2)
    optimizer = HATAM(model.named_parameters())
    late = nn.Parameter(torch.ones(2, 2))
    optimizer.param_groups[0]["params"].append(late)
    late.grad = torch.ones_like(late)
    optimizer.step()
    adamw = to_adamw(optimizer)
    assert adamw.param_groups[0]["params"][-1] is late
    assert int(adamw.state[late]["step"]) == 1
