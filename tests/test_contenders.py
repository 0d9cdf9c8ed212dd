"""Each contender's trainer against the update rule of its paper, written out here in float64."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from hatam.bench import schedules
from hatam.bench.cli import make_run
from hatam.bench.contenders import CONTENDERS, parse
from hatam.bench.sam import ASAM
from hatam.bench.tasks import all_tasks
from hatam.bench.trainers import Gradient, Losses, Trainer
from hatam.bench.training import train

STEPS = 6
Rule = Callable[[Tensor, Callable[[Tensor, int], Tensor], dict[str, float], Callable[[int], float]], Iterator[Tensor]]
"""From w, the gradient at a point and step, the options and lr of a step: the weights to evaluate after each step."""


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_model(outputs: int = 2) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, outputs)


def make_batch(step: int, outputs: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, generator=generator), torch.randn(8, outputs, generator=generator)


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradients are near 1 in size, so that MARS clips some of them and some not."""
    return (outputs - targets).square().sum(1)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(w: Tensor, step: int) -> Tensor:
    """Of the mean loss of a step's batch, at flat weights."""
    x, y = make_batch(step)
    w = w.clone().requires_grad_()
    loss = squares(x @ w[:6].view(2, 3).T + w[6:], y).mean()
    return torch.autograd.grad(loss, w)[0]


def factor(name: str, t: int) -> float:
    """A moving lr; Schedule-Free's stays up after its warm-up, as its average is defined for no other."""
    return min(1.0, t / 2) if name == "schedule-free" else 1 / t


def build(name: str, outputs: int = 2, **changed: object) -> tuple[nn.Linear, Trainer, dict[str, object]]:
    model = make_model(outputs)
    contender, options = parse(name, "none")
    options |= changed
    return model, contender.train(model, squares, options), options


def step(trainer: Trainer, t: int, lr: float) -> None:
    for group in trainer.optimizer.param_groups:
        group["lr"] = lr
    trainer.step(*make_batch(t, getattr(trainer.model, "out_features", 2)))


# The papers' rules. t counts from 1; o holds the options.


def adamw(w, grad, o, lr):
    m = v = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        m, v, w = adamw_step(w, grad(w, t), m, v, o, lr(t), t)
        yield w


def adamw_step(w, g, m, v, o, lr, t):
    m = o["beta1"] * m + (1 - o["beta1"]) * g
    v = o["beta2"] * v + (1 - o["beta2"]) * g**2
    d = m / (1 - o["beta1"] ** t) / ((v / (1 - o["beta2"] ** t)).sqrt() + o["eps"])
    return m, v, w - lr * (d + o["weight_decay"] * w)


def adamw_ema(w, grad, o, lr):
    average = None
    for new in adamw(w, grad, o, lr):
        average = new if average is None else o["decay"] * average + (1 - o["decay"]) * new
        yield average


def sam(w, grad, o, lr):
    m = v = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = grad(w, t)
        m, v, w = adamw_step(w, grad(w + o["rho"] * g / g.norm(), t), m, v, o, lr(t), t)
        yield w


def asam(w, grad, o, lr):
    """Algorithm 1 with T = |w| + η on the weight matrix, 1 on the bias."""
    m = v = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        scale = torch.cat([w[:6].abs() + o["eta"], torch.ones(2)])
        g = grad(w, t)
        perturbed = w + o["rho"] * scale**2 * g / (scale * g).norm()
        m, v, w = adamw_step(w, grad(perturbed, t), m, v, o, lr(t), t)
        yield w


def msam(w, grad, o, lr):
    m = v = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = grad(w - o["rho"] * m / m.norm() if t > 1 else w, t)
        m, v, w = adamw_step(w, g, m, v, o, lr(t), t)
        yield w


def schedule_free(w, grad, o, lr):
    """Algorithm 1: bias correction in γ_t, and averaging with weights γ_t²."""
    x, z, v, total = w, w, torch.zeros_like(w), 0.0
    for t in range(1, STEPS + 1):
        y = (1 - o["beta1"]) * z + o["beta1"] * x
        g = grad(y, t)
        v = o["beta2"] * v + (1 - o["beta2"]) * g**2
        rate = lr(t) * math.sqrt(1 - o["beta2"] ** t)
        z = z - rate * (g / (v.sqrt() + o["eps"]) + o["weight_decay"] * y)
        total += rate**2
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        yield x


def sgd(w, grad, o, lr):
    b = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = grad(w, t) + o["weight_decay"] * w
        b = o["momentum"] * b + g
        w = w - lr(t) * (g + o["momentum"] * b)
        yield w


def nadam(w, grad, o, lr):
    """With the paper's warming momentum μ_t = β1 (1 − 0.96^(tψ) / 2), and AdamW's decay."""
    m, v, product = torch.zeros_like(w), torch.zeros_like(w), 1.0

    def mu(t):
        return o["beta1"] * (1 - 0.5 * 0.96 ** (t * o["momentum_decay"]))

    for t in range(1, STEPS + 1):
        g = grad(w, t)
        product *= mu(t)
        m = o["beta1"] * m + (1 - o["beta1"]) * g
        v = o["beta2"] * v + (1 - o["beta2"]) * g**2
        ahead = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        w = w - lr(t) * (ahead / ((v / (1 - o["beta2"] ** t)).sqrt() + o["eps"]) + o["weight_decay"] * w)
        yield w


def adabelief(w, grad, o, lr):
    m = s = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = grad(w, t)
        m = o["beta1"] * m + (1 - o["beta1"]) * g
        s = o["beta2"] * s + (1 - o["beta2"]) * (g - m) ** 2 + o["eps"]
        d = m / (1 - o["beta1"] ** t) / ((s / (1 - o["beta2"] ** t)).sqrt() + o["eps"])
        w = w - lr(t) * (d + o["weight_decay"] * w)
        yield w


def adan(w, grad, o, lr):
    """Algorithm 1 with its authors' bias corrections; a beta here is 1 minus the paper's. Weight decay is proximal."""
    m = d = n = torch.zeros_like(w)
    before = None
    for t in range(1, STEPS + 1):
        g = grad(w, t)
        difference = torch.zeros_like(g) if before is None else g - before
        before = g
        m = o["beta1"] * m + (1 - o["beta1"]) * g
        d = o["beta2"] * d + (1 - o["beta2"]) * difference
        n = o["beta3"] * n + (1 - o["beta3"]) * (g + o["beta2"] * difference) ** 2
        up = m / (1 - o["beta1"] ** t) + o["beta2"] * d / (1 - o["beta2"] ** t)
        w = w - lr(t) * up / ((n / (1 - o["beta3"] ** t)).sqrt() + o["eps"])
        w = w / (1 + lr(t) * o["weight_decay"])
        yield w


def mars(w, grad, o, lr):
    """Algorithm 2 with the last gradient at its own batch (MARS-approx); the clip is per tensor, ∇_0 = 0."""
    m = v = before = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = grad(w, t)
        c = g + o["gamma"] * o["beta1"] / (1 - o["beta1"]) * (g - before)
        before = g
        c = torch.cat([part / max(1.0, float(part.norm())) for part in (c[:6], c[6:])])
        m, v, w = adamw_step(w, c, m, v, o, lr(t), t)
        yield w


def lion(w, grad, o, lr):
    m = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = grad(w, t)
        update = (o["beta1"] * m + (1 - o["beta1"]) * g).sign()
        m = o["beta2"] * m + (1 - o["beta2"]) * g
        w = w - lr(t) * (update + o["weight_decay"] * w)
        yield w


RULES: dict[str, Rule] = {
    "adamw": adamw,
    "adamw-no-momentum": adamw,
    "adamw-ema": adamw_ema,
    "sam": sam,
    "asam": asam,
    "msam": msam,
    "schedule-free": schedule_free,
    "sgd": sgd,
    "nadam": nadam,
    "adabelief": adabelief,
    "adan": adan,
    "mars": mars,
    "lion": lion,
}


@pytest.mark.parametrize("name", RULES)
def test_trainer_follows_its_paper(name: str) -> None:
    model, trainer, options = build(name)

    def lr(t: int) -> float:
        return float(options["lr"]) * factor(name, t)

    for t, expected in enumerate(RULES[name](flat(model), gradient, options, lr), start=1):
        step(trainer, t, lr(t))
        with trainer.evaluation():
            torch.testing.assert_close(flat(model), expected, rtol=1e-6, atol=1e-7)


def test_every_baseline_has_its_rule() -> None:
    """HATAM's and ATAM's are in test_reference; K-SAM is SAM on samples that test_bench checks."""
    others = {name for name in CONTENDERS if "atam" in name} | {"k-sam"}
    assert set(RULES) == set(CONTENDERS) - others


@pytest.mark.parametrize("name", ["adan", "adabelief", "lion"])
def test_multi_tensor_path_is_the_same(name: str) -> None:
    """On a GPU these packages take their foreach path by default."""
    results = []
    for foreach in (False, True):
        model, trainer, options = build(name, foreach=foreach)
        for t in range(1, STEPS + 1):
            step(trainer, t, float(options["lr"]))
        results.append(flat(model))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw-ema", "schedule-free", "msam", "hatam"])
def test_evaluation_restores_exactly_and_changes_no_training(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    model, trainer, options = build(name, outputs=2000)  # for some of so many weights the way back is inexact
    undisturbed, other, _ = build(name, outputs=2000)
    for t in range(1, STEPS + 1):
        step(trainer, t, float(options["lr"]))
        step(other, t, float(options["lr"]))
        before = flat(model)
        with contextlib.suppress(KeyboardInterrupt), trainer.evaluation():
            assert t <= 2 or not torch.equal(flat(model), before)  # HATAM has sizes to scale by from step 3 on
            raise KeyboardInterrupt
        assert torch.equal(flat(model), before)
        assert torch.equal(flat(undisturbed), before)


@pytest.mark.parametrize("name", CONTENDERS)
def test_gradients_may_stay_in_one_place(name: str) -> None:
    """Whoever answers a trainer's requests may write every gradient over the one before, and no trainer may mind."""
    (model, trainer, _), (other, alone, _) = build(name), build(name)
    places = [torch.zeros_like(p) for p in model.parameters()]
    for p, place in zip(model.parameters(), places, strict=True):
        p.grad = place

    def answer(request: Gradient | Losses) -> Tensor:
        losses = squares(model(request.x), request.y)
        if isinstance(request, Losses):
            return losses.detach()
        for place, g in zip(places, torch.autograd.grad(losses.mean(), list(model.parameters())), strict=True):
            place.copy_(g)
        return losses.mean().detach()

    trainer.answer = answer
    for t in range(1, STEPS + 1):
        step(trainer, t, 0.01)
        step(alone, t, 0.01)
    assert not torch.equal(flat(model), flat(make_model()))
    torch.testing.assert_close(flat(model), flat(other))


def test_average_covers_buffers() -> None:
    """Of a batch norm: its statistics are averaged and restored as the weights are."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    contender, options = parse("adamw-ema:decay=0.5", "none")
    trainer = contender.train(model, squares, options)
    means = []
    for t in range(1, 3):
        step(trainer, t, 0.01)
        means.append(model[1].running_mean.clone())
    with trainer.evaluation():
        torch.testing.assert_close(model[1].running_mean, (means[0] + means[1]) / 2)
    assert torch.equal(model[1].running_mean, means[1])


@pytest.mark.parametrize("name", ["sam", "asam", "k-sam"])
def test_one_pass_of_a_step_makes_the_statistics(name: str) -> None:
    """Those over the whole batch at the unperturbed weights, as AdamW's."""
    found = []
    for each in ("adamw", name):
        model = nn.Sequential(make_model(), nn.BatchNorm1d(2))
        contender, options = parse(each, "none")
        step(contender.train(model, squares, options), 1, 0.01)
        assert model[1].num_batches_tracked == 1
        assert model[1].track_running_stats
        found.append(model[1].running_var)
    torch.testing.assert_close(*found)


def test_asam_is_the_packages_where_that_is_right() -> None:
    """With η = 0 and no bias."""
    results = []
    for make in (lambda w: ASAM([w], torch.optim.SGD, rho=0.7, eta=0.0), adaptive_sam):
        w = nn.Parameter(torch.tensor([[2.0, -1.0], [0.5, 3.0]]))
        w.grad = torch.tensor([[1.0, 2.0], [-1.0, 0.3]])
        make(w).first_step()
        results.append(w.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)


def adaptive_sam(w: nn.Parameter) -> torch.optim.Optimizer:
    from pytorch_optimizer import SAM

    return SAM([w], torch.optim.SGD, rho=0.7, adaptive=True)


def test_a_run_follows_its_trainers_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    seen: list[float] = []
    step = Trainer.step

    def spy(self: Trainer, x: Tensor, y: Tensor) -> Tensor:
        seen.append(self.optimizer.param_groups[0]["lr"])
        return step(self, x, y)

    monkeypatch.setattr(Trainer, "step", spy)
    task = all_tasks()["mnist1d-mlp"]
    for spec in ("schedule-free:lr=1.0", "adamw:lr=1.0"):
        train(task, dataclasses.replace(make_run(task, spec, 0, 40), purpose="tune"))
    assert seen[:40] == [0.5, *[1.0] * 39]
    assert seen[40:] == [schedules.cosine(t, 40, task.warmup) for t in range(40)]


def test_schedule_free_keeps_its_lr() -> None:
    constant = build("schedule-free")[1].schedule
    assert [constant(t, 100, 0.04) for t in (0, 1, 3, 4, 50, 99)] == [0.25, 0.5, 1, 1, 1, 1]
    assert build("adamw-ema")[1].schedule is build("adamw")[1].schedule is schedules.cosine


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("schedule-free:beta1=0.0", "beta1=0.0 is out of range"),
        ("adamw-ema:decay=1.0", "decay=1.0 is out of range"),
        ("asam:eta=-1.0", "eta=-1.0 is out of range"),
        ("mars:gamma=-1.0", "gamma=-1.0 is out of range"),
    ],
)
def test_options_out_of_range_are_named(spec: str, message: str) -> None:
    contender, options = parse(spec, "none")
    with pytest.raises(ValueError, match=message):
        contender.train(make_model(), squares, options)


def test_sgd_without_momentum_is_sgd() -> None:
    model, trainer, _ = build("sgd", momentum=0.0, weight_decay=0.0)
    before = flat(model)
    step(trainer, 1, 0.1)
    torch.testing.assert_close(flat(model), before - 0.1 * gradient(before, 1))


def test_a_task_moves_what_is_on_adamws_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """lr and, where it is decoupled, weight decay: Lion's are a tenth of AdamW's and ten times it, everywhere."""
    task = dataclasses.replace(all_tasks()["diabetes"], options={"lr": 3e-4, "weight_decay": 0.01})
    monkeypatch.setitem(all_tasks(), "moved", task)
    begun = {name: parse(name, "moved")[1] for name in ("adamw", "adan", "lion", "sgd")}
    assert {name: (pytest.approx(o["lr"]), pytest.approx(o["weight_decay"])) for name, o in begun.items()} == {
        "adamw": (3e-4, 0.01),
        "adan": (3e-4, 0.01),
        "lion": (3e-5, 0.1),
        "sgd": (3e-3, 5e-4),
    }
    monkeypatch.setitem(all_tasks(), "misspelt", dataclasses.replace(task, options={"weight_decy": 0.1}))
    with pytest.raises(ValueError, match=r"unknown option of task misspelt 'weight_decy'.* 'weight_decay'"):
        parse("adamw", "misspelt")
