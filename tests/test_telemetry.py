"""Telemetry: what it says is what is so, on every path; where it goes; and that nobody who does not ask pays for it."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Falling, Reaching, bits, every_variant, feed, generator, gradients, parameters, state_bits, twins
from torch import Tensor, nn

from hatam import HATAM
from hatam.integrations import unwrapped
from hatam.telemetry import Telemetry, flat, to_json_lines, to_tensorboard
from hatam.testing import MODULATORS

PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@every_variant
def test_what_it_says_is_so(options: dict[str, Any], path: dict[str, Any]) -> None:
    """Against the definitions: c from the gradients, S and h from v, offset and update from where the parameters go."""
    (param,) = parameters([(6, 5)], torch.float64)
    grads = [row[0] for row in gradients([param], 8)]
    optimizer = Falling([param], 0.01, **options, **path)
    telemetry = Telemetry(optimizer, every=8)
    e, before = torch.zeros_like(param), param.detach()
    for g in grads:
        with optimizer.straightened():
            before = param.detach().clone()
        c, e = 0.1 * (g - e), 0.9 * e + 0.1 * g
        param.grad = g
        optimizer.step()
    with optimizer.straightened():
        z = param.detach().clone()
    d, update = z - param.detach(), before - z
    found = telemetry.read()
    assert found is not None
    assert found["step"] == 8
    said = found["params"]["number 0 of group 0"]
    state = optimizer.state[param]
    h = (state["exp_avg_sq"] / (1 - 0.95**8)).sqrt() + 1e-8
    s = MODULATORS[options["modulator"]](h, state.get("reach_mean"))
    expected = {
        "grad_norm": grads[-1].norm(),
        "bend_norm": c.norm(),
        "bend_ratio": c.norm() / grads[-1].norm(),
        "param_norm": param.norm(),
        "effective_step": (0.01 / h).mean(),
        "modulator_mean": s.mean(),
        "modulator_max": s.max(),
        "modulator_q50": s.flatten().sort().values[15],
        "capped": (s >= 3 * 0.999999).double().mean(),
        "reach": state["reach"],
        "offset_norm": d.norm(),
        "offset_ratio": d.norm() / param.norm(),
    }
    for key, x in expected.items():
        assert said[key] == pytest.approx(x.item(), rel=1e-5), key
    assert said["update_norm"] == pytest.approx(update.norm().item(), rel=0.02)  # lr wd of w, not of z before the step
    assert said["bend_update_cosine"] == pytest.approx(cosine(-c, update), abs=0.02)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@every_variant
def test_observing_changes_nothing(options: dict[str, Any]) -> None:
    params = parameters(((5, 4), (7,), (), (0,)))
    others = twins(params)
    optimizer, plain = Falling(params, 0.01, **options), Falling(others, 0.01, **options)
    telemetry = Telemetry(optimizer, every=1, write=lambda report: None)
    grads = gradients(params, 6)
    feed(optimizer, params, grads)
    feed(plain, others, grads)
    assert [bits(p) for p in params] == [bits(p) for p in others]
    assert state_bits(optimizer) == state_bits(plain)
    telemetry.detach()
    steps = telemetry.steps
    feed(optimizer, params, grads[:1])
    assert telemetry.steps == steps == 6


def test_unobserved_it_costs_nothing() -> None:
    """No hook, no attribute, no state."""
    params = parameters()
    optimizer = HATAM(params)
    keys = set(vars(optimizer))
    telemetry = Telemetry(optimizer, every=1)
    telemetry.detach()
    feed(optimizer, params, gradients(params, 1))
    assert telemetry.read() is None
    assert not optimizer._optimizer_step_post_hooks
    assert set(vars(optimizer)) == keys


def test_a_group_is_as_one_tensor() -> None:
    """Norms add up as squares, and means are weighted by size."""
    params = parameters([(6, 5), (7,)], torch.float64)
    optimizer = Reaching([{"params": params[:1]}, {"params": params[1:]}], 0.01, modulator="relative")
    together = Reaching(others := twins(params), 0.01, modulator="relative")
    grads = gradients(params, 5)
    observed = [Telemetry(o, every=5) for o in (optimizer, together)]
    feed(optimizer, params, grads)
    feed(together, others, grads)
    apart, one = (telemetry.read() for telemetry in observed)
    assert apart is not None
    assert one is not None
    group = one["groups"][0]
    a, b = (found for found in apart["params"].values())
    assert group["grad_norm"] == pytest.approx(math.hypot(a["grad_norm"], b["grad_norm"]))
    assert group["modulator_mean"] == pytest.approx((30 * a["modulator_mean"] + 7 * b["modulator_mean"]) / 37)
    assert group["modulator_max"] == max(a["modulator_max"], b["modulator_max"])
    assert apart["groups"][0]["update_ratio"] == pytest.approx(a["update_ratio"])


def test_a_name_that_several_groups_have() -> None:
    nets = nn.Linear(2, 2), nn.Linear(3, 3, bias=False)
    optimizer = HATAM([{"params": net.named_parameters()} for net in nets])
    telemetry = Telemetry(optimizer, every=1)
    params = [p for net in nets for p in net.parameters()]
    feed(optimizer, params, gradients(params, 1))
    report = telemetry.read()
    assert report is not None
    assert sorted(report["params"]) == ["bias", "weight of group 0", "weight of group 1"]


@pytest.mark.parametrize(
    "options",
    [
        {"state_dtype": torch.bfloat16},
        {"state_dtype": "8bit"},
        {"gamma": 0.0},
        {"modulator": "relative"},
        {"maximize": True},
    ],
    ids=str,
)
def test_other_states(options: dict[str, Any]) -> None:
    """All numbers are finite, and none is there that the state does not give."""
    params = parameters([(64, 64), (3, 1)])
    optimizer = Falling(params, 0.01, **options)
    telemetry = Telemetry(optimizer, every=3)
    feed(optimizer, params, gradients(params, 3))
    report = telemetry.read()
    assert report is not None
    for found in report["params"].values():
        assert all(math.isfinite(x) for x in found.values())
        assert ("offset_norm" in found) is (options.get("gamma") != 0.0)


def test_complex_scaled_and_closures() -> None:
    """A loss scale is taken out, a closure's gradients are the ones that are seen."""
    (param,) = parameters([(4, 3)], torch.complex64)
    optimizer = HATAM([param], 0.01, fused=True)
    telemetry = Telemetry(optimizer, every=2)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([8.0]), torch.tensor([0.0])
    g = torch.randn(4, 3, dtype=torch.complex64, generator=generator())

    def closure() -> float:
        param.grad = 8.0 * g
        return 0.0

    for _ in range(2):
        optimizer.step(closure)
    report = telemetry.read()
    assert report is not None
    assert report["groups"][0]["grad_norm"] == pytest.approx(g.norm().item(), rel=1e-6)


def test_losses_at_both_points() -> None:
    (param,) = parameters([(5,)])
    optimizer = Reaching([param], 0.01, gamma=0.5)
    telemetry = Telemetry(optimizer)
    feed(optimizer, [param], gradients([param], 4))
    w = param.detach().clone()
    found = telemetry.losses(lambda: (param**2).sum())
    assert found["loss_at_w"] == pytest.approx((w**2).sum().item())
    with optimizer.straightened():
        assert found["loss_at_z"] == pytest.approx((param**2).sum().item())
    assert found["loss_at_w"] != found["loss_at_z"]
    assert torch.equal(param, w)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_bad_every(every: Any) -> None:
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        Telemetry(HATAM(parameters()), every=every)


def test_not_a_hatam() -> None:
    adamw = torch.optim.AdamW(parameters())
    with pytest.raises(TypeError, match="must be a HATAM, not AdamW"):
        Telemetry(adamw)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the host has a AdamW"):
        unwrapped(adamw)


# Where it goes ------------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    """Strict JSON, a line for each observation; with β1 = 0 the bend cannot be told, and is null."""
    params = parameters()
    optimizer = HATAM(params, 0.01, betas=(0.0, 0.999))
    Telemetry(optimizer, every=2, write=to_json_lines(tmp_path / "telemetry.jsonl"))
    feed(optimizer, params, gradients(params, 5))
    lines = (tmp_path / "telemetry.jsonl").read_text(encoding="utf-8").splitlines()
    reports = [json.loads(line) for line in lines]
    assert [report["step"] for report in reports] == [2, 4]
    assert reports[0]["groups"][0]["bend_norm"] is None
    assert reports[0]["groups"][0]["update_ratio"] > 0


def test_tensorboard() -> None:
    """Every number by its name, as ``SummaryWriter.add_scalar`` wants it, whatever parameters are called."""

    class Writer:
        def __init__(self) -> None:
            self.scalars: dict[str, tuple[float, int]] = {}

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.scalars[tag] = (scalar_value, global_step)

    writer, params = Writer(), parameters()
    optimizer = Reaching([*zip(("layer0.weight", "group0", "groups/0"), params, strict=True)], 0.01)
    telemetry = Telemetry(optimizer, every=3, write=to_tensorboard(writer))
    feed(optimizer, params, gradients(params, 3))
    report = telemetry.read()
    assert report is not None
    assert writer.scalars == {name: (x, 3) for name, x in flat(report).items()}
    assert len(writer.scalars) == sum(map(len, [*report["groups"], *report["params"].values()]))
    assert "hatam/params/layer0.weight/offset_ratio" in writer.scalars


@pytest.mark.compatible("TensorBoard", "torch.utils.tensorboard.SummaryWriter")
def test_a_real_summary_writer(tmp_path: Path) -> None:
    """Written by torch, read back by TensorBoard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        params = parameters()
        optimizer = Reaching(params, 0.01)
        with SummaryWriter(str(tmp_path)) as writer:
            Telemetry(optimizer, every=3, write=to_tensorboard(writer))
            feed(optimizer, params, gradients(params, 6))
        found = EventAccumulator(str(tmp_path)).Reload().Scalars("hatam/groups/0/offset_ratio")
    assert [scalar.step for scalar in found] == [3, 6]
    assert all(0 < scalar.value < math.inf for scalar in found)


@pytest.mark.compatible("Hugging Face Trainer", "a callback that observes")
def test_trainer_callback(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from test_examples import Net
        from transformers import Trainer, TrainingArguments

        from hatam.integrations.transformers import TelemetryCallback

        data = [{"x": torch.ones(8), "labels": torch.ones(1)}] * 16
        reports: list[dict[str, Any]] = []
        arguments = TrainingArguments(
            str(tmp_path), max_steps=6, report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no"
        )
        kinds = (HATAM, {"lr": 0.01})
        callbacks = [TelemetryCallback(reports.append, every=2)]
        Trainer(Net(), arguments, train_dataset=data, optimizer_cls_and_kwargs=kinds, callbacks=callbacks).train()
    assert [report["step"] for report in reports] == [2, 4, 6]
    assert len(reports[0]["groups"]) == 2  # the Trainer's own: with and without weight decay


@pytest.mark.compatible("PyTorch Lightning", "a callback that observes")
def test_lightning_callback() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        from lightning.pytorch.loggers import Logger

        from hatam.integrations.lightning import TelemetryCallback

        class Memory(Logger):
            name, version = "memory", 0

            def __init__(self) -> None:
                super().__init__()
                self.found: list[tuple[int | None, dict[str, float]]] = []

            def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
                self.found.append((step, metrics))

            def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
                pass

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(4, 1)

            def training_step(self, batch: Tensor, index: int) -> Tensor:
                return self.layer(batch).square().mean()

            def configure_optimizers(self) -> HATAM:
                return HATAM(self.named_parameters(), lr=0.01)

        logger = Memory()
        quiet: dict[str, Any] = {
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        trainer = lightning.Trainer(
            max_steps=4, logger=logger, callbacks=[TelemetryCallback(every=2)], accelerator="cpu", **quiet
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=2))
    steps = [step for step, metrics in logger.found if "hatam/params/layer.weight/update_ratio" in metrics]
    assert steps == [2, 4]


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["dense", "gradient laid otherwise", "complex", "beside a complex one"])
def test_the_loss_scale_is_taken_off_once(gamma: float, kind: str) -> None:
    """torch's fused AdamW, which does the step where γ = 0, takes it off the gradients themselves where it can."""
    params = parameters([(6, 5)], torch.complex64 if kind == "complex" else torch.float32)
    grads = gradients(params, 1)[0]
    if kind == "gradient laid otherwise":
        grads = [grads[0].t().contiguous().t()]
    elif kind == "beside a complex one":
        params += parameters([(2, 3)], torch.complex64)
        grads += gradients(params[1:], 1)[0]
    optimizer = HATAM(params, 0.01, gamma=gamma, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    telemetry = Telemetry(optimizer, every=1)
    for param, g in zip(params, grads, strict=True):
        param.grad = torch.empty_strided(g.shape, g.stride(), dtype=g.dtype).copy_(1024 * g)
    optimizer.step()
    report = telemetry.read()
    assert report is not None
    for i, g in enumerate(grads):
        told = report["params"][f"number {i} of group 0"]["grad_norm"]
        assert told == pytest.approx(g.norm().item(), rel=1e-5)


def test_a_bend_that_nothing_remembers_is_not_told() -> None:
    (param,) = parameters([(6, 5)])
    optimizer = HATAM([param], 0.01, betas=(0.0, 0.95))
    telemetry = Telemetry(optimizer, every=3)
    feed(optimizer, [param], gradients([param], 3))
    assert math.isnan(telemetry.read()["params"]["number 0 of group 0"]["bend_norm"])


def test_steps_go_on_from_those_of_the_optimizer() -> None:
    """So that curves go on where a checkpoint is loaded."""
    params = parameters()
    optimizer = HATAM(params, 0.01)
    feed(optimizer, params, gradients(params, 3))
    telemetry = Telemetry(optimizer, every=1)
    feed(optimizer, params, gradients(params, 2))
    assert telemetry.read()["step"] == 5


def test_several_optimizers_of_a_lightning_module_have_their_own_names() -> None:
    params = [parameters([(3, 2)]) for _ in range(2)]
    logged: list[tuple[int, dict[str, float]]] = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((step, metrics)))
    trainer = SimpleNamespace(optimizers=[HATAM(own, 0.01) for own in params], loggers=[logger])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hatam.integrations.lightning import TelemetryCallback

        callback = TelemetryCallback(every=1)
    callback.on_train_start(trainer, None)
    for optimizer, own in zip(trainer.optimizers, params, strict=True):
        feed(optimizer, own, gradients(own, 1))
    callback.on_train_end(trainer, None)
    (first, one), (second, other) = logged
    assert first == second == 1
    assert not one.keys() & other.keys()
    assert "hatam/optimizer1/groups/0/update_ratio" in other
