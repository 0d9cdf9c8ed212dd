"""The rules of :mod:`hatam.reach` for JAX, on arrays with one number for each leaf of the parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .options import CHECKS
from .reach import GROWTH, POWER

Array = jax.Array


class ReachState(NamedTuple):
    """What κ depends on.

    ``reach``, ``rms_ratio`` and ``path_length`` are κ, ρ and N of every leaf, in the order of ``jax.tree.leaves``. They
    are 0 where a leaf is not hidden. ``lr`` is that of the last step.
    """

    step_count: Array
    lr: Array
    lr_peak: Array
    reach_started: Array
    reach: Array
    rms_ratio: Array
    path_length: Array


class Options(NamedTuple):
    """The options of the reach, see :class:`hatam.HATAM`: numbers, or arrays of ``optax.inject_hyperparams``."""

    gamma: Any
    travel: Any
    horizon: Any
    fade: Any

    def checked(self) -> Options:
        """Return these options, once those that are plain numbers are in range. Others are values of a trace."""
        for name, value in self._asdict().items():
            if not isinstance(value, jax.Array):
                CHECKS[name](name, value)
        return self


def initial_reach(leaves: list[Array]) -> ReachState:
    """Return the state before the first step, in float64 if a leaf is, else in float32."""
    dtype = jnp.float64 if any(x.dtype in ("float64", "complex128") for x in leaves) else jnp.float32
    kappas, ratios, lengths = (jnp.zeros(len(leaves), dtype) for _ in range(3))
    lr, peak = jnp.zeros((), dtype), jnp.zeros((), dtype)
    return ReachState(jnp.zeros((), jnp.int32), lr, peak, jnp.zeros((), bool), kappas, ratios, lengths)


def advanced(state: ReachState, lr: Array, options: Options) -> ReachState:
    """Return the state in a step at lr, with its κ. ρ and N are still those of the step before."""
    peak, dtype = jnp.maximum(state.lr_peak, lr), state.reach.dtype
    factor = options.gamma * lr_factor(lr, peak, options.fade)
    kappas = factor * state.rms_ratio * travel_factor(state.path_length, options.travel)
    kappas = jnp.minimum(kappas, jnp.where(peak > 0, options.horizon * peak, 0)).astype(dtype)
    started = state.reach_started | (factor > 0)
    return ReachState(state.step_count + 1, lr, peak, started, kappas, state.rms_ratio, state.path_length)


def measured(state: ReachState, z_norms: Array, u_norms: Array) -> ReachState:
    """Return the state with ρ and N of the last step, from z and u after it.

    Norms are those of whole leaves, whose ratio is that of the RMS, and 0 of leaves that are not hidden.
    """
    last, dtype, steps = state.rms_ratio, state.reach.dtype, state.step_count.astype(state.reach.dtype)
    ratios = jnp.where(state.reach_started, next_rms_ratios(z_norms, u_norms, last), last).astype(dtype)
    lengths = next_path_lengths(state.path_length, ratios, last, state.lr, state.lr_peak, steps).astype(dtype)
    return state._replace(rms_ratio=ratios, path_length=lengths)


def lr_factor(lr: Array, lr_peak: Array, fade: Any) -> Array:
    """Return (1 − lr / peak)² min(1, lr / (fade · peak)), or 0 if the peak is 0."""
    share = jnp.where(lr_peak > 0, lr / jnp.where(lr_peak > 0, lr_peak, 1), 0)
    return (1 - share) ** POWER * jnp.minimum(1, share / fade)


def travel_factor(lengths: Array, travel: Any) -> Array:
    """Return τ = min(1, max(0, N − 1) / travel)², or 1 if travel is 0."""
    travel = jnp.asarray(travel, lengths.dtype)
    part = jnp.clip((lengths - 1) / jnp.where(travel > 0, travel, 1), 0, 1) ** POWER
    return jnp.where(travel > 0, part, 1)


def next_rms_ratios(z_norms: Array, u_norms: Array, last: Array) -> Array:
    """Return ρ from the norms of z and u; the last ρ where the norm of u is 0 or a value is not finite."""
    new = z_norms / jnp.where(u_norms > 0, u_norms, 1)
    limited = jnp.where(last > 0, jnp.minimum(new, GROWTH * last), new)
    return jnp.where((u_norms > 0) & (u_norms < math.inf) & (new < math.inf), limited, last)


def next_path_lengths(lengths: Array, ratios: Array, last: Array, lr: Array, lr_peak: Array, steps: Array) -> Array:
    """Return N + lr / ρ, or N + steps · peak / ρ at the first measured ρ. N is unchanged where ρ is 0."""
    increments = jnp.where(last > 0, lr, steps * lr_peak) / jnp.where(ratios > 0, ratios, 1)
    return jnp.where(ratios > 0, lengths + increments, lengths)


def norms(xs: dict[int, Array], like: Array) -> Array:
    """Return the norms of the leaves with these numbers and 0 of the others, of the shape and dtype of ``like``."""
    found = [jnp.zeros((), like.dtype)] * len(like)
    for i, x in xs.items():
        wide = x.astype(jnp.promote_types(x.dtype, like.dtype))
        found[i] = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(wide)))).astype(like.dtype)
    return jnp.stack(found) if found else like
