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
from hatam.bench.trainers import Trainer
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


def step(trainer: Trainer, t: int, lr: float, peak: float | None = None) -> None:
    peak = 1.0 if peak is None else peak
    trainer.schedule = lambda *_: lr / peak
    trainer.arrive(t - 1, STEPS, 0.2, peak)
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
    """Algorithm 1: bias correction in γ_t, and averaging with weights γ_t², times t^r."""
    x, z, v, total = w, w, torch.zeros_like(w), 0.0
    for t in range(1, STEPS + 1):
        y = (1 - o["beta1"]) * z + o["beta1"] * x
        g = grad(y, t)
        v = o["beta2"] * v + (1 - o["beta2"]) * g**2
        rate = lr(t) * math.sqrt(1 - o["beta2"] ** t)
        z = z - rate * (g / (v.sqrt() + o["eps"]) + o["weight_decay"] * y)
        weight = t ** o.get("r", 0.0) * rate**2
        total += weight
        x = (1 - weight / total) * x + weight / total * z
        yield x


def gpa(w, grad, o, lr):
    """With AdamW's direction, and its weight decay of z."""
    x, z, m, v = w, w, torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        y = o["mu_y"] * x + (1 - o["mu_y"]) * z
        m, v, z = adamw_step(z, grad(y, t), m, v, o, lr(t), t)
        x = o["mu_x"] * x + (1 - o["mu_x"]) * z
        yield x


def ema_nesterov(w, grad, o, lr):
    """With β_t in proportion to lr, and 0 in the two steps of the warm-up and in the last one."""
    m, v, ahead = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        beta = o["ahead"] * lr(t) / o["lr"] if 2 < t < STEPS else 0.0
        y = w + beta * ahead
        m, v, new = adamw_step(y, grad(y, t), m, v, o, lr(t), t)
        ahead = o["decay"] * ahead + (1 - o["decay"]) * (new - w)
        w = new
        yield w


def late_sam(w, grad, o, lr):
    m = v = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = grad(w, t)
        if t > STEPS - round(o["share"] * STEPS):
            g = grad(w + o["rho"] * g / g.norm(), t)
        m, v, w = adamw_step(w, g, m, v, o, lr(t), t)
        yield w


def ademamix(w, grad, o, lr):
    """Algorithm 1 with T_α = T_β3 the number of steps: no bias correction of the slow momentum."""
    m = slow = v = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g, part = grad(w, t), t / STEPS
        alpha = part * o["alpha"]
        log1, log3 = math.log(o["beta1"]), math.log(o["beta3"])
        beta3 = math.exp(log1 * log3 / ((1 - part) * log3 + part * log1))
        m = o["beta1"] * m + (1 - o["beta1"]) * g
        slow = beta3 * slow + (1 - beta3) * g
        v = o["beta2"] * v + (1 - o["beta2"]) * g**2
        up = m / (1 - o["beta1"] ** t) + alpha * slow
        w = w - lr(t) * (up / ((v / (1 - o["beta2"] ** t)).sqrt() + o["eps"]) + o["weight_decay"] * w)
        yield w


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
    "gpa": gpa,
    "ema-nesterov": ema_nesterov,
    "late-sam": late_sam,
    "ademamix": ademamix,
    "sgd": sgd,
    "nadam": nadam,
    "adabelief": adabelief,
    "adan": adan,
    "mars": mars,
    "lion": lion,
}


CHANGED: dict[str, dict[str, object]] = {
    "late-sam": {"share": 0.5},
    "ema-nesterov": {"rest": 0.2, "decay": 0.7},
    "gpa": {"mu_x": 0.8},
}
"""Options at which a few steps show more."""


@pytest.mark.parametrize(
    ("name", "changed"), [*((name, CHANGED.get(name, {})) for name in RULES), ("schedule-free", {"r": 2.0})]
)
def test_trainer_follows_its_paper(name: str, changed: dict[str, object]) -> None:
    model, trainer, options = build(name, **changed)

    def lr(t: int) -> float:
        return float(options["lr"]) * factor(name, t)

    for t, expected in enumerate(RULES[name](flat(model), gradient, options, lr), start=1):
        step(trainer, t, lr(t), options["lr"])
        with trainer.evaluation():
            torch.testing.assert_close(flat(model), expected, rtol=1e-6, atol=1e-7)


def test_every_baseline_has_its_rule() -> None:
    """HATAM's and ATAM's are in test_reference; K-SAM is SAM on samples that test_bench checks."""
    others = {name for name in CONTENDERS if "atam" in name} | {"k-sam"}
    assert set(RULES) == set(CONTENDERS) - others


@pytest.mark.parametrize("name", ["adan", "adabelief", "ademamix", "lion"])
def test_multi_tensor_path_is_the_same(name: str) -> None:
    """On a GPU these packages take their foreach path by default."""
    results = []
    for foreach in (False, True):
        model, trainer, options = build(name, foreach=foreach)
        for t in range(1, STEPS + 1):
            step(trainer, t, float(options["lr"]))
        results.append(flat(model))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw-ema", "schedule-free", "gpa", "msam", "hatam"])
def test_evaluation_restores_exactly_and_changes_no_training(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    changed = {"travel": 0.0} if name == "hatam" else {}
    model, trainer, options = build(name, outputs=2000, **changed)  # for some of so many the way back is inexact
    undisturbed, other, _ = build(name, outputs=2000, **changed)
    for t in range(1, STEPS + 1):
        lr = float(options["lr"]) / t
        step(trainer, t, lr)
        step(other, t, lr)
        before = flat(model)
        with contextlib.suppress(KeyboardInterrupt), trainer.evaluation():
            assert t <= 2 or not torch.equal(flat(model), before)  # HATAM has sizes to scale by from step 3 on
            raise KeyboardInterrupt
        assert torch.equal(flat(model), before)
        assert torch.equal(flat(undisturbed), before)


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


@pytest.mark.parametrize("name", ["sam", "asam", "k-sam", "late-sam:share=1"])
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


def test_schedules_keep_lr_up() -> None:
    def at(name: str, *steps: int) -> list[float]:
        return [schedules.SCHEDULES[name](t, 100, 0.04) for t in steps]

    assert at("constant", 0, 1, 3, 4, 50, 99) == [0.25, 0.5, 1, 1, 1, 1]
    assert at("late", 0, 1, 3, 4, 50, 79) == [0.25, 0.5, 1, 1, 1, 1]
    assert at("late", 84, 89, 94, 99) == pytest.approx([0.75, 0.5, 0.25, 0])
    assert at("late", 99) == [0]


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_takes_a_schedule(name: str) -> None:
    """Its own is not among the options of a run, whose record is found by these."""
    own, usual = CONTENDERS[name].schedule, parse(name, "none")[1]
    assert own == ("constant" if name == "schedule-free" else "cosine")
    for schedule, function in schedules.SCHEDULES.items():
        contender, options = parse(f"{name}:schedule={schedule}", "none")
        assert options == (usual if schedule == own else {**usual, "schedule": schedule})
        assert contender.train(make_model(), squares, options).schedule is function
    with pytest.raises(ValueError, match=r"unknown schedule 'lat'\. Did you mean 'late'\? .*: cosine, late, constant"):
        parse(f"{name}:schedule=lat", "none")


def test_an_option_that_came_later_is_not_in_the_options_of_older_records() -> None:
    assert "r" not in parse("schedule-free", "none")[1]
    assert parse("schedule-free:r=0.0", "none") == parse("schedule-free:r=0", "none") == parse("schedule-free", "none")
    assert parse("schedule-free:r=2.0", "none")[1]["r"] == 2.0
    with pytest.raises(ValueError, match="unknown option of adamw 'r'"):
        parse("adamw:r=2.0", "none")


@pytest.mark.parametrize(
    ("spec", "gradients"), [("late-sam", 1.1), ("late-sam:share=0.25", 1.25), ("late-sam:share=0", 1), ("gpa", 1)]
)
def test_gradients_of_a_run(spec: str, gradients: float) -> None:
    torch.set_default_dtype(torch.float32)
    task = all_tasks()["mnist1d-mlp"]
    record = train(task, dataclasses.replace(make_run(task, spec, 0, 40), purpose="tune"))
    assert record["gradients_per_step"] == pytest.approx(gradients)


def test_average_at_a_constant_lr() -> None:
    """Where lr stays up the average is better than the weights that it is of."""
    torch.set_default_dtype(torch.float32)
    task = all_tasks()["mnist1d-mlp"]
    scores = {}
    for name in ("adamw", "adamw-ema"):
        run = dataclasses.replace(make_run(task, f"{name}:schedule=constant,lr=0.01", 0, 300), purpose="tune")
        scores[name] = train(task, run)["result"]["validation"]
    assert scores["adamw-ema"] > scores["adamw"] + 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("schedule-free:beta1=0.0", "beta1=0.0 is out of range"),
        ("adamw-ema:decay=1.0", "decay=1.0 is out of range"),
        ("asam:eta=-1.0", "eta=-1.0 is out of range"),
        ("mars:gamma=-1.0", "gamma=-1.0 is out of range"),
        ("gpa:mu_x=1.0", "mu_x=1.0 is out of range"),
        ("gpa:mu_y=1.1", "mu_y=1.1 is out of range"),
        ("ema-nesterov:ahead=-1.0", "ahead=-1.0 is out of range"),
        ("ema-nesterov:decay=1.0", "decay=1.0 is out of range"),
        ("ema-nesterov:rest=1.1", "rest=1.1 is out of range"),
        ("late-sam:share=1.1", "share=1.1 is out of range"),
        ("ademamix:beta1=0.0", "beta1=0.0 and beta3=0.999 are out of range"),
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
    task = dataclasses.replace(all_tasks()["digits"], options={"lr": 3e-4, "weight_decay": 0.01})
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
