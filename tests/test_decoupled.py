"""The default form: AdamW on z, whatever the displacement does; and how long the displacement's radius lives."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from conftest import cosine, equal, every_path, feed, generator, gradients, parameters, relative_error, twins, unit_of
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from hatam import HATAM
from hatam.norms import of_groups
from hatam.reference import Reference

every_modulator = pytest.mark.parametrize("modulator", ["relative", "uniform"])
every_beta_c = pytest.mark.parametrize("beta_c", [None, 0.5], ids=["shared-m", "own-e"])


def radii(optimizer: HATAM, params: list[torch.nn.Parameter], lrs: list[float]) -> list[float]:
    """The radius of the displacement after every step of a schedule."""
    grads = gradients(params, len(lrs))
    result = []
    for row, lr in zip(grads, lrs, strict=True):
        feed(optimizer, params, [row], [lr])
        result.append(optimizer.state[params[0]]["displacement_radius"].item())
    return result


# z ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float-lr", "tensor-lr"])
@every_modulator
@every_beta_c
def test_a_schedule_that_ends_at_0_ends_at_z(
    beta_c: float | None, modulator: str, lr: float | Tensor, dtype: torch.dtype
) -> None:
    """Bit for bit: nobody needs to switch to an evaluation mode. Half way, w is elsewhere."""
    params = parameters(dtype=dtype)
    optimizer = HATAM(params, copy.deepcopy(lr), gamma=4.0, beta_c=beta_c, modulator=modulator)
    grads, lrs = gradients(params, 30), cosine(30, 0.01, 5)
    for last, steps in ((False, slice(15)), (True, slice(15, 30))):
        feed(optimizer, params, grads[steps], lrs[steps])
        w = twins(params)
        with optimizer.straightened():
            assert equal(params, w) == last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_undoing_and_redoing_does_not_drift(dtype: torch.dtype) -> None:
    r"""With prescribed gradients z is AdamW's w, up to roundings of size u·max|w|, u the unit roundoff.

    A step rounds z twice more than AdamW's, when d is undone and done again (d itself is the same both times, from the
    same state), and twice in either run for decay and descent, of values that are no longer the same: at most
    6 T u max|w| after T steps. They have no preferred sign: as a random walk of 6 T of them, of standard deviation
    u max|w| / √3 at most, they reach √(2T) u max|w|. Asserted is √T u max|w|, and measured is a tenth of that.
    """
    steps = 10_000
    params = parameters([(64,)], dtype)
    others = twins(params)
    optimizer, adamw = HATAM(params, 3e-3, foreach=False), AdamW(others, 3e-3, foreach=False)
    rng = generator(1)
    scale = torch.randn(64, generator=rng).exp()
    largest = 0.0
    for t in range(1, steps + 1):
        grad = (scale * torch.randn(64, generator=rng)).to(dtype)
        for p, o in ((params[0], optimizer), (others[0], adamw)):
            p.grad = grad
            o.step()
        if t in (1, 10, 100, 1000, steps):
            largest = max(largest, params[0].abs().max().item(), others[0].abs().max().item())
            bound = math.sqrt(t) * torch.finfo(dtype).eps / 2 * largest
            with optimizer.straightened():
                drift = (params[0].double() - others[0].double()).abs().max().item()
            assert drift <= bound


@every_path
def test_weights_written_in_mid_training(foreach: bool) -> None:
    """They count as displaced, unless the radius that docs/from_adamw.md says how to forget is forgotten."""
    params = parameters()
    optimizer = HATAM(params, 0.01, gamma=2.0, foreach=foreach)
    feed(optimizer, params, gradients(params, 3))
    best = twins(params)
    feed(optimizer, params, gradients(params, 3))
    with torch.no_grad():
        for p, q in zip(params, best, strict=True):
            p.copy_(q)
    with optimizer.straightened():
        assert not equal(params, best)
    for state in optimizer.state.values():
        state["displacement_radius"].zero_()
    with optimizer.straightened():
        assert equal(params, best)


@every_path
@every_modulator
@every_beta_c
@pytest.mark.parametrize(("radius", "gamma"), [("absolute", 0.5), ("relative", 0.1), ("lr", 3.0)])
def test_moments_and_z_are_those_of_adamw(
    radius: str, gamma: float, beta_c: float | None, modulator: str, foreach: bool
) -> None:
    """The gradient is taken elsewhere; what is done with it is AdamW, to the last bit in the moments."""
    params = parameters()
    others = twins(params)
    grads, lrs = gradients(params, 30), cosine(30, 0.01, 5)
    options = {"radius": radius, "gamma": gamma, "beta_c": beta_c, "modulator": modulator}
    optimizer = HATAM(params, 0.01, **options, foreach=foreach)
    adamw = AdamW(others, 0.01, foreach=foreach)
    feed(optimizer, params, grads, lrs)
    feed(adamw, others, grads, lrs)
    for param, other in zip(params, others, strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[param][key], adamw.state[other][key])
        assert relative_error(param, other) <= 1e-6  # lr is 0 at the end: w is z


# d ------------------------------------------------------------------------------------------------------------------


@every_path
@every_modulator
def test_displacement_by_its_formula(modulator: str, foreach: bool) -> None:
    """d = z − w = ρ S e / h from what the state says, with the cap at work in some coordinates and not in others."""
    params = parameters([(200,)], torch.float64)
    cap = {"modulator_cap": 3.0} if modulator == "relative" else {}
    optimizer = HATAM(params, 0.01, gamma=2.0, radius="lr", modulator=modulator, **cap, foreach=foreach)
    grads = gradients(params, 20)
    feed(optimizer, params, grads[:19])
    v, t = optimizer.state[params[0]]["exp_avg_sq"], 19
    mean = ((v / (1 - 0.999**t)).sqrt() + 1e-8).mean()  # of the step before
    feed(optimizer, params, grads[19:])
    state = optimizer.state[params[0]]
    h = (state["exp_avg_sq"] / (1 - 0.999**20)).sqrt() + 1e-8
    S = (h / mean).clamp(max=3.0) if modulator == "relative" else torch.ones_like(h)
    if modulator == "relative":
        assert 0 < (S == 3.0).sum() < 200
    w = params[0].detach().clone()
    with optimizer.straightened():
        d = params[0].detach() - w
    assert relative_error(d, 2.0 * 0.01 * S * state["exp_avg"] / h) <= 1e-12


@every_path
@every_beta_c
def test_first_displacement(beta_c: float | None, foreach: bool) -> None:
    """The relative modulator has no mean of the step before yet: d_1 = 0. The uniform one needs none: d_1 = ρ e / h."""
    for modulator in ("relative", "uniform"):
        params = parameters(dtype=torch.float64)
        optimizer = HATAM(params, 0.01, radius="lr", modulator=modulator, beta_c=beta_c, foreach=foreach)
        feed(optimizer, params, gradients(params, 1))
        w = twins(params)
        with optimizer.straightened():
            assert equal(params, w) == (modulator == "relative")


# ρ ------------------------------------------------------------------------------------------------------------------


def test_the_radius_is_held_until_lr_has_fallen_to_its_share() -> None:
    """γ · lr peak while lr ≥ fade · peak, then γ · lr / fade, down to 0 with lr."""
    params = parameters(dtype=torch.float64)
    lrs = [0.1, 0.08, 0.05, 0.026, 0.025, 0.02, 0.01, 0.001, 0.0]
    expected = [0.2, 0.2, 0.2, 0.2, 0.2, 0.16, 0.08, 0.008, 0.0]
    assert radii(HATAM(params, 0.1, gamma=2.0, radius="lr", fade=0.25), params, lrs) == pytest.approx(
        expected, rel=1e-14, abs=0
    )


def test_fade_1_follows_lr() -> None:
    params = parameters(dtype=torch.float64)
    lrs = cosine(20, 0.1, 5)
    optimizer = HATAM(params, 0.1, gamma=2.0, radius="lr", fade=1.0)
    assert radii(optimizer, params, lrs) == pytest.approx([2 * lr for lr in lrs], abs=0)


def test_fade_is_a_tenth_by_default() -> None:
    params = parameters(dtype=torch.float64)
    lrs = [0.1, 0.011, 0.01, 0.005]
    assert radii(HATAM(params, 0.1, radius="lr"), params, lrs) == pytest.approx([0.1, 0.1, 0.1, 0.05], rel=1e-14, abs=0)


def test_during_a_warm_up_the_peak_is_the_largest_lr_so_far() -> None:
    """The step's own lr included; a restart below the old peak does not lower it, one above raises it."""
    params = parameters(dtype=torch.float64)
    lrs = [0.01, 0.02, 0.04, 0.03, 0.001, 0.02, 0.04, 0.06, 0.05]
    expected = [0.01, 0.02, 0.04, 0.04, 0.01, 0.04, 0.04, 0.06, 0.06]
    optimizer = HATAM(params, 99.0, radius="lr")  # the constructor's lr, which no step has had, does not count
    assert radii(optimizer, params, lrs) == pytest.approx(expected, rel=1e-14, abs=0)
    assert optimizer.param_groups[0]["lr_peak"] == 0.06


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), torch.tensor([0.1])], ids=["float", "0-dim", "1-dim"])
def test_the_peak_survives_a_checkpoint(lr: float | Tensor) -> None:
    """It is the past's, and a resumed run late in its schedule cannot find it again."""
    params = parameters()
    optimizer = HATAM(params, copy.deepcopy(lr), radius="lr")
    feed(optimizer, params, gradients(params, 3), [0.01, 0.1, 0.05])
    resumed = HATAM(params, copy.deepcopy(lr), radius="lr")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert radii(resumed, params, [0.02, 0.005]) == pytest.approx([0.1, 0.05])
    # loading did not tie the two together
    assert float(optimizer.param_groups[0]["lr_peak"]) == pytest.approx(0.1)
    feed(resumed, params, gradients(params, 1), [0.7])
    assert float(optimizer.param_groups[0]["lr_peak"]) == pytest.approx(0.1)


@pytest.mark.parametrize("gamma_at_first", [0.0, 1.0])
def test_every_group_has_a_peak_of_its_own(gamma_at_first: float) -> None:
    """Which rises only with the steps that had a displacement; γ = 0 is AdamW and keeps no account."""
    params = parameters([(3,), (3,)], torch.float64)
    optimizer = HATAM([{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.01, "gamma": gamma_at_first}])
    feed(optimizer, params, gradients(params, 2))
    assert [group["lr_peak"] for group in optimizer.param_groups] == [0.1, 0.01 * gamma_at_first]


# Schedules that change betas ----------------------------------------------------------------------------------------


@every_path
@every_modulator
@pytest.mark.parametrize("beta_c", [None, 0.9], ids=["e-is-m", "own-e"])
def test_one_cycle_agrees_with_the_reference(beta_c: float | None, modulator: str, foreach: bool) -> None:
    """It changes β1 every step, and βc with it where e is m; d_{t−1} is undone as it was done all the same."""
    (param,) = parameters([(6, 5)], torch.float64)
    optimizer = HATAM([param], 0.01, beta_c=beta_c, modulator=modulator, foreach=foreach)
    oracle = Reference(
        param,
        cap=1.0,
        gamma=optimizer.param_groups[0]["gamma"],
        **unit_of(optimizer),
        uniform=modulator == "uniform",
        beta_c=0.9,
    )
    steps = 50
    scheduler = OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
    seen: set[Any] = set()
    for i, (g,) in enumerate(gradients([param], steps)):
        group = optimizer.param_groups[0]
        oracle.beta1 = group["betas"][0]
        oracle.beta_c = oracle.beta1 if beta_c is None else beta_c
        seen.add(oracle.beta1)
        oracle.step(g, group["lr"])
        feed(optimizer, [param], [[g]])
        assert relative_error(param, oracle.w) <= 1e-12
        if i < steps - 1:
            scheduler.step()
    assert len(seen) > steps / 2
    assert ("exp_avg_grad" in optimizer.state[param]) == (beta_c is not None)


@pytest.mark.parametrize("foreach", [False, True])
def test_zero_gradients_at_the_start_displace_nothing(foreach: bool) -> None:
    """mean(h) = ε after them measures no sharpness: without a cap the next displacement would be ρ e / ε."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = HATAM([param], lr=0.01, radius="lr", modulator_cap=math.inf, foreach=foreach)
    for gradient in (0.0, 0.0, 1.0):
        param.grad = torch.full((3,), gradient)
        optimizer.step()
    assert torch.all((param - 1).abs() < 0.1)


# A radius relative to the weights ------------------------------------------------------------------------------------


def sizes(optimizer: HATAM, params: list[torch.nn.Parameter]) -> list[float]:
    """RMS(d) / RMS(z) of every parameter."""
    displaced = [p.detach().clone() for p in params]
    with optimizer.straightened():
        return [
            float(((w - p).square().mean() / p.square().mean()).sqrt().detach())
            for w, p in zip(displaced, params, strict=True)
        ]


@every_modulator
@every_beta_c
def test_the_displacement_is_as_large_as_asked_for(modulator: str, beta_c: float | None) -> None:
    """But for what a step changes, whatever lr and the scale of the gradients; and no more once lr has run out."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(scale * torch.randn(80, 30)) for scale in (0.01, 1.0, 30.0)]
    optimizer = HATAM(params, 1e-4, radius="relative", gamma=0.05, modulator=modulator, beta_c=beta_c)
    for factor in (1e-6, 1.0, 1e6):
        for _ in range(30):
            for p in params:
                p.grad = factor * torch.randn_like(p)
            optimizer.step()
        assert sizes(optimizer, params) == pytest.approx([0.05] * 3, rel=0.15)
    for lr in (5e-6, 0.0):  # half of what fade = 0.1 leaves alone, and the end of a schedule
        optimizer.param_groups[0]["lr"] = lr
        for p in params:
            p.grad = 1e6 * torch.randn_like(p)
        optimizer.step()
        assert sizes(optimizer, params) == pytest.approx([0.05 * lr / 1e-5] * 3, rel=0.15, abs=1e-7)


@every_modulator
def test_the_displacement_of_all_has_the_norm_asked_for(modulator: str) -> None:
    """By its weights in every tensor, whatever its gradients are, over all groups, those that come later too."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(scale * torch.randn(80, 30)) for scale in (0.0, 1.0, 30.0, 1.0)]
    optimizer = HATAM([{"params": params[:2]}, {"params": [params[2]]}], 1e-4, betas=(0.9, 0.9), gamma=0.5)
    for group in optimizer.param_groups:
        group["modulator"] = modulator
    for count in (3, 4):
        if count == 4:
            optimizer.add_param_group({"params": [params[3]], "modulator": modulator})
        for _ in range(30):
            for p in params[:count]:
                p.grad = torch.randn_like(p) * p.detach().abs().amax()
            optimizer.step()
        displaced = [p.detach().clone() for p in params[:count]]
        with optimizer.straightened():
            norms = [float((p.detach() - w).norm()) for p, w in zip(params, displaced, strict=False)]
        weights = torch.tensor([float(p.detach().norm()) for p in params[:count]])
        assert norms[0] == 0  # without a gradient nothing is displaced
        assert norms == pytest.approx((0.5 * weights / weights.norm()).tolist(), rel=0.1)


def test_a_norm_is_measured_by_the_weights_at_the_start() -> None:
    """Frozen ones too, which may be trained later; complex ones as pairs. After AdamW it is where it was loaded."""
    frozen = torch.nn.Parameter(torch.ones(300), requires_grad=False)
    params = [torch.nn.Parameter(torch.full((4,), 3.0)), torch.nn.Parameter(torch.full((4,), 4.0 + 3.0j)), frozen]
    optimizer = HATAM([{"params": params[:1]}, {"params": params[1:]}])
    assert [group["start_norm"] for group in optimizer.param_groups] == pytest.approx([6.0, 20.0])
    assert of_groups(optimizer.param_groups) == pytest.approx((436**0.5, 312))
    saved = AdamW(params[:1]).state_dict()
    with torch.no_grad():
        params[0].mul_(2)
    optimizer = HATAM(params[:1])
    params[0].data.mul_(2)
    assert optimizer.param_groups[0]["start_norm"] == pytest.approx(12.0)
    optimizer.load_state_dict(saved)
    params[0].grad = torch.ones(4)
    optimizer.step()
    assert optimizer.param_groups[0]["start_norm"] == pytest.approx(24.0, rel=1e-2)
    optimizer.load_state_dict(HATAM([torch.nn.Parameter(torch.ones(4))]).state_dict())
    assert optimizer.param_groups[0]["start_norm"] == pytest.approx(2.0)


@pytest.mark.parametrize("as_lr", [float, torch.tensor])
def test_weights_that_come_after_the_optimizer_are_measured_at_its_first_step(as_lr: Any) -> None:
    param = torch.nn.Parameter(torch.empty(100, device="meta"))
    optimizer = HATAM([param], gamma=0.5)
    assert optimizer.param_groups[0]["start_norm"] is None
    torch.utils.swap_tensors(param, torch.nn.Parameter(torch.ones(100)))
    for lr, size, expected in ((0.0, 1.0, 10.0), (1e-9, 3.0, 30.0), (1e-9, 1.0, 30.0)):
        optimizer.param_groups[0]["lr"] = as_lr(lr)  # a distributed checkpoint takes a step at 0 before it loads
        param.data.fill_(size)
        param.grad = torch.ones(100)
        optimizer.step()
        assert optimizer.param_groups[0]["start_norm"] == pytest.approx(expected)


def test_a_norm_is_measured_where_it_is_asked_for() -> None:
    """Of a group whose γ was 0 so far; of what a lazy module has made; and not of a group that was refused."""
    weight = torch.nn.Parameter
    param, lazy = weight(torch.ones(100)), torch.nn.LazyLinear(3)
    optimizer = HATAM([param, *lazy.parameters()], gamma=0.0)
    for gamma, expected in ((0.0, None), (0.5, 10.0)):
        optimizer.param_groups[0]["gamma"] = gamma
        param.grad = torch.ones(100)
        optimizer.step()
        assert optimizer.param_groups[0]["start_norm"] == (expected and pytest.approx(expected, rel=1e-2))
    with pytest.raises(NotImplementedError, match="no norm"):
        optimizer.add_param_group({"params": [weight(torch.ones(4).as_subclass(Unmeasurable))], "gamma": 0.5})
    assert len(optimizer.param_groups) == 1
    HATAM([weight(torch.ones(4).as_subclass(Unmeasurable))], gamma=0.0)
    optimizer.add_param_group({"params": torch.nn.LazyLinear(3).parameters(), "gamma": 0.5})
    assert optimizer.param_groups[1]["start_norm"] is None
    optimizer.step()
    assert of_groups(optimizer.param_groups) == pytest.approx((10.0, 100), rel=1e-2)


class Unmeasurable(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.linalg.vector_norm:
            raise NotImplementedError("no norm")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_what_is_no_number_counts_for_nothing_in_a_norm() -> None:
    """Frozen weights may be quantized, and uninitialized ones anything."""
    frozen = [torch.ones(4, dtype=torch.uint8), torch.ones(4).to(torch.float8_e4m3fn), torch.ones(4).to_sparse()]
    frozen += [torch.full((4,), math.nan), torch.full((4,), math.inf), torch.full((4,), 1e200, dtype=torch.float64)]
    params = [torch.nn.Parameter(x, requires_grad=False) for x in frozen] + [torch.nn.Parameter(torch.ones(4))]
    assert HATAM(params).param_groups[0]["start_norm"] == pytest.approx(2.0)
    saved = HATAM(params).state_dict()
    HATAM(params).load_state_dict(saved)


class Tagged(torch.Tensor):
    """As hosts make them that keep something beside a weight."""


class Packed(torch.Tensor):
    """A quantized weight: it looks like float32 and has no arithmetic."""

    @staticmethod
    def __new__(cls) -> Packed:
        return cls._make_wrapper_subclass(cls, (4,), dtype=torch.float32)  # type: ignore[attr-defined,no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: object, *_: object) -> Tensor:
        if func is torch.ops.aten.detach.default:
            return Packed()
        raise NotImplementedError(str(func))


def test_a_norm_counts_subclasses_that_are_trained_and_no_others() -> None:
    trained = torch.nn.Parameter(torch.ones(4).as_subclass(Tagged))
    frozen = torch.nn.Parameter(Packed(), requires_grad=False)
    optimizer = HATAM([trained, frozen], fused=False)
    assert type(trained) is Tagged
    assert optimizer.param_groups[0]["start_norm"] == pytest.approx(2.0)
    trained.grad = torch.ones_like(trained)
    for _ in range(3):
        optimizer.step()
    with optimizer.straightened():
        straight = trained.detach().clone()
    assert not torch.equal(straight, trained)
    with FakeTensorMode():  # for estimates of memory
        imagined = torch.nn.Parameter(torch.ones(4))
    assert HATAM([imagined]).param_groups[0]["start_norm"] is None


def test_the_unit_can_become_a_norm_in_mid_training() -> None:
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(50, 20))
    optimizer = HATAM([param], 1e-4, betas=(0.9, 0.9), radius="relative", gamma=0.05)
    for t in range(60):
        param.grad = torch.randn(50, 20)
        optimizer.step()
        assert sizes(optimizer, [param])[0] < 0.07
        if t == 30:
            optimizer.param_groups[0].update(radius="absolute", gamma=0.05 * float(param.detach().norm()))
    assert sizes(optimizer, [param]) == pytest.approx([0.05], rel=0.2)


@pytest.mark.parametrize("gamma", [1e-6, 0.0])
def test_compiled_weights_that_begin_at_zero(gamma: float) -> None:
    """What the compiler keeps is what an eager step measures; γ = 0 displaces nothing."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.zeros(100))
        optimizer = HATAM([param], 0.01, betas=(0.9, 0.9), gamma=1e-6, fused=False, foreach=False)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(5):
            param.grad = torch.randn(100)
            step()
            optimizer.param_groups[0]["gamma"] = gamma
        found.append(sizes(optimizer, [param])[0])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert (found[0] == 0) == (gamma == 0)


def test_no_norm_displaces_weights_by_more_than_a_quarter_of_them() -> None:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(x) for x in (torch.zeros(1000), torch.randn(1000))]
    optimizer = HATAM(params[:1], 1e-2, betas=(0.9, 0.9), weight_decay=0.0)  # which begin at 0
    other = HATAM(params[1:], 1e-4, betas=(0.9, 0.9), gamma=1e6)
    for _ in range(600):
        for p in params:
            p.grad = torch.randn(1000)
        optimizer.step()
        other.step()
    assert 0.05 < sizes(optimizer, params[:1])[0] < 0.25  # its scale grows more slowly than they do
    assert sizes(other, params[1:]) == pytest.approx([0.25], rel=0.15)


@every_path
def test_a_norm_begins_small_and_grows_slowly(foreach: bool) -> None:
    """√(1 − β2^t) of it at first; a larger u shrinks its scale at once, a smaller one lets it grow by 0.3% a step."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(4000))
    optimizer = HATAM([param], 1e-4, betas=(0.9, 0.98), gamma=0.5, foreach=foreach)
    shares, scales = [], []
    share = 0.5 / optimizer.param_groups[0]["start_norm"]
    for t in range(150):
        param.grad = torch.ones(4000) if 100 <= t < 110 else torch.randn(4000)  # coherent for a while
        optimizer.step()
        shares.append(sizes(optimizer, [param])[0])
        scales.append(float(optimizer.state[param]["displacement_scale"]))
    assert shares[9] == pytest.approx(share * (1 - 0.98**10) ** 0.5, rel=0.1)
    assert shares[99] == pytest.approx(share * (1 - 0.98**100) ** 0.5, rel=0.1)
    assert scales[109] < 0.5 * scales[99]
    grown = [after / before for before, after in itertools.pairwise(scales[115:])]
    assert max(grown) == pytest.approx(1.003, rel=1e-5)
    assert min(grown) > 1


@every_path
@pytest.mark.parametrize("in_groups", [False, True])
def test_a_low_lr_caps_the_radius_by_default(in_groups: bool, foreach: bool) -> None:
    """2% of the peak lr times the steps in the root mean square; not where γ is given, or lr allows all of it."""
    for lr, gamma, expected in ((1e-4, None, 0.02 * 1e-4 * 100), (1e-4, 0.5, 0.5 / 50), (0.1, None, 0.5 / 50)):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n)) for n in (500, 2000)]
        groups = [{"params": [p]} for p in params] if in_groups else params
        optimizer = HATAM(groups, lr, betas=(0.9, 0.95), gamma=gamma, foreach=foreach)
        for _ in range(100):
            feed(optimizer, params, [[torch.randn_like(p) for p in params]])
        displaced = torch.cat([p.detach().clone() for p in params])
        with optimizer.straightened():
            d = torch.cat([p.detach() for p in params]) - displaced
        start = math.sqrt(sum(group["start_norm"] ** 2 for group in optimizer.param_groups))
        grown = float((d + displaced).norm()) / start
        assert float(d.square().mean().sqrt()) == pytest.approx(expected * grown, rel=0.1)


def test_the_cap_by_default_goes_with_gamma_by_default() -> None:
    """In groups, and in checkpoints: one of AdamW takes the default, one that names γ alone has no cap, as it had."""
    params = [torch.nn.Parameter(torch.randn(5)) for _ in range(3)]
    groups = [{"params": params[:1]}, {"params": params[1:2], "gamma": 0.35}, {"params": params[2:], "radius": "lr"}]
    optimizer = HATAM(groups)
    assert [group["radius_cap"] for group in optimizer.param_groups] == [0.02, math.inf, math.inf]
    assert HATAM(params, radius_cap=0.1, gamma=0.5).param_groups[0]["radius_cap"] == 0.1
    for given, gamma, cap in (({}, 0.5, 0.02), ({"gamma": 0.4}, 0.4, math.inf), ({"radius_cap": 0.1}, 0.5, 0.1)):
        optimizer = HATAM(params, **given)
        optimizer.load_state_dict(AdamW(params, betas=(0.9, 0.95)).state_dict())
        assert (optimizer.param_groups[0]["gamma"], optimizer.param_groups[0]["radius_cap"]) == (gamma, cap)
    optimizer = HATAM(params, form="raw")  # which has none, until the group takes another form
    optimizer.param_groups[0].update(form="decoupled", radius="absolute", gamma=0.5)
    feed(optimizer, params, gradients(params, 3))
    assert optimizer.param_groups[0]["radius_cap"] == math.inf
    optimizer = HATAM([{"params": params, "radius_cap": 0.02}], gamma=0.4)
    optimizer.load_state_dict(AdamW(params).state_dict())
    assert (optimizer.param_groups[0]["gamma"], optimizer.param_groups[0]["radius_cap"]) == (0.4, 0.02)
    saved = HATAM(params, gamma=0.35).state_dict()
    del saved["param_groups"][0]["radius_cap"]
    optimizer = HATAM(params)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["radius_cap"] == math.inf
    older = optimizer.__getstate__()
    for key in ("radius_cap", "start_numel"):
        for holder in (older["defaults"], *older["param_groups"]):
            holder.pop(key, None)
    optimizer.__setstate__(older)
    feed(optimizer, params, gradients(params, 3))
    assert optimizer.param_groups[0]["radius_cap"] == math.inf


def test_the_cap_counts_what_the_norm_is_of() -> None:
    """Not what is packed or is no number, and what a lazy module makes after the optimizer, all the same."""
    frozen = torch.nn.Parameter(torch.ones(10**6, dtype=torch.uint8), requires_grad=False)
    optimizer = HATAM([torch.nn.Parameter(torch.ones(6, 5, dtype=torch.complex64)), frozen])
    assert optimizer.param_groups[0]["start_numel"] == 60
    lazy = torch.nn.LazyLinear(4)
    optimizer.add_param_group({"params": lazy.parameters()})
    assert optimizer.param_groups[1]["start_numel"] is None
    lazy(torch.ones(1, 9)).sum().backward()
    optimizer.step()
    start = of_groups(optimizer.param_groups)
    assert start is not None
    assert start.numel == 60 + 40


def test_a_gradient_that_fades_away_does_not_blow_up_the_next() -> None:
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(500))
    optimizer = HATAM([param], 0.01, betas=(0.9, 0.999), radius="relative", gamma=0.05)
    for t in range(300):
        param.grad = torch.randn(500) * (0.0 if 100 <= t < 299 else 1.0)
        optimizer.step()
        assert sizes(optimizer, [param])[0] < 0.05 * 5


def test_the_unit_of_the_radius_can_change_in_mid_training() -> None:
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(50, 20))
    optimizer = HATAM([param], 0.01, radius="lr")
    expected = []
    for t in range(30):
        optimizer.param_groups[0].update(
            radius="relative" if 10 <= t < 20 else "lr", gamma=0.05 if 10 <= t < 20 else 1.0
        )
        param.grad = torch.randn(50, 20)
        optimizer.step()
        expected.append(sizes(optimizer, [param])[0])
    assert expected[19] == pytest.approx(0.05, rel=0.1)
    assert expected[29] == pytest.approx(expected[9], rel=0.2)


def test_gamma_has_a_default_for_each_unit() -> None:
    options: list[dict[str, Any]] = [{}, {"radius": "relative"}, {"radius": "lr"}, {"form": "raw"}]
    options += [{"betas": betas} for betas in ((0.9, 0.95), (0.8, 0.95), (0.98, 0.95), (0.98, 0.999))]
    options += [{"betas": (0.8, 0.95), "beta_c": 0.95}]
    params = [torch.nn.Parameter(torch.randn(5)) for _ in options]
    optimizer = HATAM([{"params": [p], **o} for p, o in zip(params, options, strict=True)])
    found = [(group["radius"], group["gamma"]) for group in optimizer.param_groups]
    assert found[:4] == [("absolute", 0.35), ("relative", 0.005), ("lr", 1.0), (None, 1.0)]
    assert found[4:] == [("absolute", gamma) for gamma in (0.5, 0.35, 0.5, 0.35, 0.5)]
