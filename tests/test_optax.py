"""The reach in Optax: against the float64 references, Optax's own tests, and all that Optax combines."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import cosine
from hypothesis import given
from hypothesis import strategies as st

from hatam import reach
from hatam.testing import AroundReference, Reference

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax", reason="needs the extra jax")
optax = pytest.importorskip("optax", reason="needs the extra jax")
jnp, traced, ours = jax.numpy, pytest.importorskip("hatam.traced"), pytest.importorskip("hatam.optax")
eval_params, hatam, straighten = ours.eval_params, ours.hatam, ours.straighten

STEPS = 200
RATES = cosine(STEPS, 0.1, 10)
REACHING: dict[str, Any] = {"travel": 0.5}
Tree = dict[str, Any]
BASES: dict[str, Any] = {
    "sgd": partial(optax.sgd, momentum=0.9),
    "adamw": optax.adamw,
    "lion": optax.lion,
    "lamb": optax.lamb,
    "muon": optax.contrib.muon,
}


def schedule(rates: list[float] = RATES) -> Any:
    """These rates as a function of the count."""
    return lambda count: jnp.asarray(rates)[count]


def normal(seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    return {
        "bias": rng.standard_normal(7),
        "block": {"conv": rng.standard_normal((2, 3, 4))},
        "kernel": rng.standard_normal((5, 4)),
    }


def tree(seed: int = 0, dtype: Any = np.float32) -> Tree:
    return jax.tree.map(lambda x: x.astype(dtype), normal(seed))


def gradients(steps: int, dtype: Any = np.float32) -> Tree:
    """Prescribed gradients, with the steps as first axis of every leaf."""
    drift, noise = normal(1), [normal(2 + i) for i in range(steps)]
    return jax.tree.map(lambda d, *ns: (0.1 * d + 0.5 * np.stack(ns)).astype(dtype), drift, *noise)


@cache
def training(optimizer: Any) -> Any:
    """All steps in one compiled ``lax.scan``: the last state, and w and z of every step."""

    def steps(params: Tree, state: Any, grads: Tree) -> Any:
        def step(carry: Any, g: Tree) -> Any:
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            params = optax.apply_updates(params, updates)
            has_reach = any(isinstance(x, (ours.HatamState, ours.StraightenState)) for x in nodes_of(state))
            return (params, state), (params, eval_params(state, params) if has_reach else params)

        (_, state), (ws, zs) = jax.lax.scan(step, (params, state), grads)
        return state, ws, zs

    return jax.jit(steps)


def nodes_of(state: Any) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "reach_state"))


def run(optimizer: Any, params: Tree, grads: Tree, like: Tree | None = None) -> tuple[Any, Tree, Tree]:
    """:func:`training` in NumPy's arrays, with the state of parameters ``like`` these."""
    state = jax.jit(optimizer.init)(params if like is None else like)
    found: tuple[Any, Tree, Tree] = jax.device_get(training(optimizer)(params, state, grads))
    return found


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, with the same structure."""
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y, equal_nan=True)), one, other)))


def at(places: Any, xs: Any) -> Any:
    """These places on the first axis of every leaf."""
    return jax.tree.map(lambda x: x[places], xs)


def worst(found: Any, wanted: Any) -> float:
    """The largest difference, over the largest entry of the tensor and step."""

    def error(x: Any, y: Any) -> float:
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        axes = tuple(range(1, y.ndim))
        return float(np.max(np.abs(x - y).max(axes) / np.abs(y).max(axes)))

    return max(jax.tree.leaves(jax.tree.map(error, found, wanted)))


LIMITS = {np.float32: 1e-6, np.float64: 1e-12}
every_dtype = pytest.mark.parametrize("dtype", LIMITS, ids=["float32", "float64"])


@every_dtype
def test_hatam_is_the_reference(dtype: Any) -> None:
    with jax.enable_x64(dtype is np.float64):
        params, grads = tree(dtype=dtype), gradients(STEPS, dtype)
        state, ws, zs = run(hatam(schedule(), weight_decay=0.1, **REACHING), params, grads)
    wanted: list[list[np.ndarray]] = []
    for p, gs in zip(jax.tree.leaves(params), jax.tree.leaves(grads), strict=True):
        oracle = Reference(torch.tensor(np.asarray(p)), weight_decay=0.1, hidden=p.ndim > 1, **REACHING)
        wanted.append([])
        for g, lr in zip(torch.tensor(np.asarray(gs)), RATES, strict=True):
            oracle.step(g, lr)
            wanted[-1] += [oracle.w.numpy().copy(), oracle.z.numpy().copy()]
    structure = jax.tree.structure(params)
    assert worst(ws, structure.unflatten([np.stack(one[::2]) for one in wanted])) < LIMITS[dtype]
    assert worst(zs, structure.unflatten([np.stack(one[1::2]) for one in wanted])) < LIMITS[dtype]
    assert np.abs(ws["kernel"] - zs["kernel"]).max() > 0.01
    assert equal(ws["bias"], zs["bias"])
    assert state.reach_state.path_length.dtype == dtype
    assert (
        len(jax.tree.leaves(state))
        == len(jax.tree.leaves(jax.eval_shape(optax.adamw(schedule()).init, params))) + 2 + 7
    )


@pytest.mark.parametrize(("name", "dtype"), [("sgd", np.float64), *((name, np.float32) for name in BASES)])
def test_straighten_is_the_reference(name: str, dtype: Any) -> None:
    """z is where the base alone is, and w ahead of it."""
    with jax.enable_x64(dtype is np.float64):
        params, grads, rates = tree(dtype=dtype), gradients(STEPS, dtype), schedule()
        state, ws, zs = run(straighten(BASES[name](rates), rates, **REACHING), params, grads)
        assert worst(zs, run(BASES[name](rates), params, grads)[1]) < LIMITS[dtype]
    wanted = []
    for p, own in zip(jax.tree.leaves(params), jax.tree.leaves(zs), strict=True):
        oracle = AroundReference(torch.tensor(np.asarray(p)), hidden=p.ndim > 1, **REACHING)
        wanted.append([])
        for z, lr in zip(torch.tensor(np.asarray(own)), RATES, strict=True):
            oracle.follow(z, lr)
            wanted[-1].append(oracle.w.numpy().copy())
    limit = LIMITS[dtype] if dtype is np.float64 else 2e-5  # the oracle's u is a difference of rounded z here
    assert worst(ws, jax.tree.structure(params).unflatten(list(map(np.stack, wanted)))) < limit
    assert np.abs(ws["kernel"] - zs["kernel"]).max() > 0.01
    assert equal(ws["bias"], zs["bias"])
    assert isinstance(state.offset["bias"], optax.MaskedNode)


NUMBERS = st.floats(0, 10, allow_subnormal=False)


@given(
    numbers=st.lists(NUMBERS, min_size=3, max_size=3),
    share=st.floats(0, 1, allow_subnormal=False),
    peak=st.sampled_from([0.0, 1.0, 2.5]),
    fade=st.sampled_from([0.1, 1.0]),
    travel=st.sampled_from([0.0, 0.5, 15.0]),
)
def test_the_rules_are_those_of_torch(
    numbers: list[float], share: float, peak: float, fade: float, travel: float
) -> None:
    lr = share * peak
    with jax.enable_x64(True):
        found = rules(np.asarray(numbers), lr, peak, fade, travel)
    xs = torch.tensor(numbers, dtype=torch.float64)
    ys, half = xs.flip(0), 0.5 * xs
    wanted = [
        torch.tensor(reach.lr_factor(lr, peak, fade), dtype=xs.dtype),
        torch.as_tensor(reach.travel_factor(xs, travel)),
    ]
    wanted += [
        reach.next_rms_ratios(xs, ys, half),
        reach.next_path_lengths(xs, ys, half, lr, peak, torch.tensor(7.0, dtype=xs.dtype)),
    ]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, np.broadcast_to(other.numpy(), one.shape), rtol=1e-12, atol=1e-200)


@jax.jit
def rules(xs: Any, lr: Any, peak: Any, fade: Any, travel: Any) -> Any:
    ys, half = xs[::-1], 0.5 * xs
    factors = traced.lr_factor(lr, peak, fade), traced.travel_factor(xs, travel)
    return *factors, traced.next_rms_ratios(xs, ys, half), traced.next_path_lengths(xs, ys, half, lr, peak, 7.0)


@pytest.mark.parametrize("name", ["hatam", "sgd", "lamb"])
def test_without_gamma_it_is_the_base(name: str) -> None:
    """Bit for bit, with its state and no buffer; one step at a time, so that the compiler fuses nothing else."""
    params, grads, rates = tree(), gradients(20), schedule(cosine(20, 0.1))
    base = BASES[name](rates) if name != "hatam" else optax.adamw(rates, 0.9, 0.95, weight_decay=1e-2)
    optimizer = hatam(rates, gamma=0) if name == "hatam" else straighten(base, rates, gamma=0.0)
    own, ws, alone, zs = optimizer.init(params), params, base.init(params), params
    update, base_update, apply = jax.jit(optimizer.update), jax.jit(base.update), jax.jit(optax.apply_updates)
    for i in range(20):
        updates, own = update(at(i, grads), own, ws)
        ws = apply(ws, updates)
        updates, alone = base_update(at(i, grads), alone, zs)
        zs = apply(zs, updates)
    assert equal(ws, zs)
    assert equal(own.base_state, alone)
    assert equal(eval_params(own, ws), ws)
    assert not own.reach_state.reach.any()
    assert not jax.tree.leaves(getattr(own, "offset", ()))


def test_until_lr_falls_it_is_the_base() -> None:
    """To rounding: the compiler may fuse other operations."""
    params, grads = tree(), gradients(6)
    rates = schedule([0.02, 0.05, 0.1, 0.1, 0.1, 0.1])
    _, ws, _ = run(hatam(rates, travel=0.0), params, grads)
    assert worst(ws, run(optax.adamw(rates, 0.9, 0.95, weight_decay=1e-2), params, grads)[1]) < 3e-7


def test_where_lr_comes_from() -> None:
    """A schedule, injected hyperparameters inside and outside, and one of the base that changes by hand."""
    params, grads, rates = tree(), gradients(20), schedule(cosine(20, 0.1))
    injected = optax.chain(optax.clip(1e9), optax.inject_hyperparams(optax.sgd)(rates, 0.9))
    _, ws, _ = run(straighten(BASES["sgd"](rates), lambda count: 7 * rates(count), **REACHING), params, grads)
    assert worst(ws, run(straighten(injected, **REACHING), params, grads)[1]) < 1e-5
    _, ws, _ = run(hatam(rates, travel=0.0), params, grads)
    assert worst(ws, run(optax.inject_hyperparams(hatam)(rates, travel=0.0), params, grads)[1]) < 1e-6

    optimizer = straighten(optax.inject_hyperparams(optax.sgd)(0.1), **REACHING)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for i, lr in enumerate([0.1, 0.08, 0.06, 0.04]):
        state.base_state.hyperparams["learning_rate"] = jnp.asarray(lr)
        _, state = update(at(i, grads), state, params)
    assert float(state.reach_state.lr_peak) == pytest.approx(0.1)
    assert state.reach_state.reach_started
    for base in (optax.sgd(0.1), optax.chain(*[optax.inject_hyperparams(optax.sgd)(0.1)] * 2)):
        with pytest.raises(ValueError, match="learning_rate=None needs one"):
            straighten(base).init(params)


def test_which_leaves_are_hidden() -> None:
    """By default those of two dimensions whose path names no embedding and no bias; else those that a tree marks."""
    leaf = jnp.ones((3, 2))
    params = {"Embed_0": {"embedding": leaf}, "attention": {"kernel": leaf, "bias": leaf}, "norm": jnp.ones(3)}
    everything = straighten(optax.sgd(0.1), 0.1, hidden=True).init(params)
    assert len(jax.tree.leaves(everything.offset)) == 4
    by_default = straighten(optax.sgd(0.1), 0.1).init(params)
    assert jax.tree.structure(by_default.offset["attention"]) == jax.tree.structure(
        {"kernel": leaf, "bias": optax.MaskedNode()}
    )
    assert len(jax.tree.leaves(by_default.offset)) == 1
    prefix = {"Embed_0": True, "attention": {"kernel": False, "bias": True}, "norm": False}
    for hidden in (prefix, lambda tree: {**prefix, "Embed_0": jax.tree.map(lambda _: True, tree["Embed_0"])}):
        state = straighten(optax.sgd(0.1), 0.1, hidden=hidden).init(params)
        assert [bool(jax.tree.leaves(state.offset[key])) for key in params] == [True, True, False]

    rates = schedule(cosine(20, 0.1)[:10] * 2)
    wide, grads = tree(), gradients(12)
    state, ws, zs = run(hatam(rates, hidden={"bias": True, "block": False, "kernel": False}), wide, grads)
    assert [equal(ws[key], zs[key]) for key in ("block", "kernel")] == [True, True]
    assert state.reach_state.rms_ratio[0] > 0
    assert not state.reach_state.rms_ratio[1:].any()


def both(rates: Any) -> Any:
    """HATAM of one leaf and the reach around another optimizer of another, in one."""
    kinds = {"h": hatam(rates, travel=0.0), "s": straighten(BASES["sgd"](rates), rates, travel=0.0)}
    return optax.multi_transform({**kinds, "a": optax.sgd(rates)}, {"bias": "a", "block": "s", "kernel": "h"})


THIRTY = cosine(30, 0.1)


def test_in_parts_of_the_parameters() -> None:
    """``multi_transform``: each part as alone, and ``eval_params`` gives z of all."""
    params, grads, rates = tree(), gradients(30), schedule(THIRTY)
    _, ws, zs = run(both(rates), params, grads)
    alone = {"kernel": hatam(rates, travel=0.0), "block": straighten(BASES["sgd"](rates), rates, travel=0.0)}
    for key, optimizer in alone.items():
        _, own_ws, own_zs = run(optimizer, {key: params[key]}, {key: grads[key]})
        assert worst({"w": ws[key], "z": zs[key]}, {"w": own_ws[key], "z": own_zs[key]}) < 1e-6
        assert not equal(ws[key], zs[key])
    assert equal(ws["bias"], zs["bias"])
    with pytest.raises(ValueError, match="state has none of hatam"):
        eval_params(optax.sgd(0.1).init(params), params)
    with pytest.raises(ValueError, match="params=None"):
        alone["kernel"].update(params, alone["kernel"].init(params))


def test_accumulation_and_steps_that_are_skipped() -> None:
    """``MultiSteps`` steps with means of gradients; what ``apply_if_finite`` rejects changes nothing."""
    params, grads, optimizer = tree(), gradients(30), both(schedule(THIRTY))
    _, ws, zs = run(optimizer, params, grads)
    micro = jax.tree.map(lambda x: np.stack([x - 0.1, x + 0.1], 1).reshape(-1, *x.shape[1:]), grads)
    _, *found = run(optax.MultiSteps(optimizer, 2).gradient_transformation(), params, micro)
    assert worst(at(slice(1, None, 2), found), [ws, zs]) < 1e-4

    bad = jax.tree.map(lambda x: np.insert(x, 20, np.nan, axis=0), grads)
    state, *found = run(optax.apply_if_finite(optimizer, 3), params, bad)
    assert equal(at(19, found), at(20, found))
    assert worst(at(np.arange(31) != 20, found), [ws, zs]) < 1e-6
    assert state.total_notfinite == 1


def test_seeds_at_once() -> None:
    """``vmap`` of trainings: each is the one alone, with a ρ of its own."""
    optimizer, grads, seeds = both(schedule(THIRTY)), gradients(30), [tree(seed) for seed in (11, 12, 13)]
    many = jax.tree.map(lambda *xs: np.stack(xs), *seeds)
    state = jax.jit(jax.vmap(optimizer.init))(many)
    state, *found = jax.device_get(jax.vmap(training(optimizer), (0, 0, None))(many, state, grads))
    for i, params in enumerate(seeds):
        _, *alone = run(optimizer, params, grads)
        assert worst(at(i, found), alone) < 1e-5
    ratios = state.inner_states["h"].inner_state.reach_state.rms_ratio
    assert len(set(ratios.ravel().tolist())) == 3


def test_bfloat16() -> None:
    """All in bfloat16; and with a float32 state, which ``init`` of float32 parameters makes."""
    optimizer, wide = both(schedule(cosine(60, 0.1))), tree()
    params, grads = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (wide, gradients(40)))
    state, ws, zs = run(optimizer, params, grads)
    assert {x.dtype for x in jax.tree.leaves((ws, zs))} == {jnp.dtype(jnp.bfloat16)}
    own = [state.inner_states[key].inner_state for key in "hs"]
    assert {x.dtype for one in own for x in one.reach_state[4:]} == {jnp.dtype(np.float32)}
    assert own[1].offset["block"]["conv"].dtype == jnp.bfloat16
    assert not any(equal(ws[key], zs[key]) for key in ("block", "kernel"))

    state, ws, zs = run(optimizer, params, grads, like=wide)
    assert {x.dtype for x in jax.tree.leaves((ws, zs))} == {jnp.dtype(jnp.bfloat16)}
    own = [state.inner_states[key].inner_state for key in "hs"]
    assert {x.dtype for x in jax.tree.leaves((own[0].base_state[0].nu, own[1].offset))} == {jnp.dtype(np.float32)}
    _, _, exact = run(optimizer, *jax.tree.map(lambda x: x.astype(np.float32), (params, grads)))
    assert worst(zs["block"], exact["block"]) < 2**-8, "the rounding of z at the end alone"
    assert worst(zs["kernel"], exact["kernel"]) < 0.05


@pytest.mark.parametrize(
    "options", [{"gamma": -1.0}, {"fade": 0.0}, {"travel": float("nan")}, {"horizon": -1}], ids=str
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    for make in (partial(hatam, 0.1), partial(straighten, optax.sgd(0.1), 0.1)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            make(**options)


DECAY = optax.cosine_decay_schedule(1e-2, 30_000)
BASE = {"opt_name": "adam", "opt_kwargs": {"learning_rate": DECAY}}
WRAPPED = {**BASE, "wrapper_name": "straighten", "wrapper_kwargs": {"learning_rate": DECAY}}
FALLING = {"opt_name": "hatam", "opt_kwargs": {"learning_rate": DECAY}}
CONSTANT = {"opt_name": "hatam", "opt_kwargs": {"learning_rate": 1e-2}}
TARGETS = [("test_optimizers", {"target": target}) for target in ("parabola", "rosenbrock", "mixed_tensor_target")]
OTHERS: list[tuple[str, dict[str, Any]]] = [("test_optimizers_accept_extra_args", {"wrap": True})]
OTHERS += [("test_preserve_dtype", {"dtype": dtype}) for dtype in ("bfloat16", "float32")]
OTHERS += [("test_gradient_accumulation", {"dtype": "bfloat16"})]
OTHERS += [("test_state_shape_dtype_shard_stability", {"dtype": dtype}) for dtype in (jnp.float16, jnp.float64)]
INJECTED = [("test_optimizers_can_be_wrapped_in_inject_hyperparams", one) for one in (CONSTANT, WRAPPED)]


@pytest.mark.parametrize(
    ("name", "given"),
    [(name, {**one, **more}) for one in (FALLING, WRAPPED) for name, more in (*TARGETS, *OTHERS)] + INJECTED,
)
def test_common_tests_of_optax(name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of contributed optimizers that Optax ships, on these."""
    common = pytest.importorskip("optax.contrib._common_test", reason="this Optax ships no tests")
    monkeypatch.setattr(optax.contrib, "hatam", partial(hatam, hidden=True), raising=False)
    monkeypatch.setattr(optax.contrib, "straighten", partial(straighten, hidden=True), raising=False)
    if "target" in given:
        given = {**given, "target": getattr(common, f"_setup_{given['target']}"), "dtype": "float32"}
    test = getattr(common.ContribTest, f"{name}0")
    test.__wrapped__(common.ContribTest(f"{name}0"), **{"wrapper_name": None, "wrapper_kwargs": None, **given})


def test_eight_devices() -> None:
    """A process of its own, since JAX fixes the number of devices when it starts."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).parent / "optax_sharded.py"
    done = subprocess.run([sys.executable, script], env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
