r"""HATAM and the late reach around any optimizer for JAX, as Optax's gradient transformations.

The base moves z. The parameters are w, at which gradients are taken, and differ from z in hidden leaves only:

.. math::
    w = z - \kappa_t\, u_t,

with κ as in :mod:`hatam.reach`. In :func:`straighten` lr u is the base's step, as in :class:`hatam.Straightened`. In
:func:`hatam` u = m / h, as in :class:`hatam.HATAM`. :func:`eval_params` gives z, the point to evaluate and to publish.
Needs the extra ``jax``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import optax
except ImportError as error:
    raise ImportError(f"hatam.optax needs JAX and Optax, but {error}: pip install 'hatam[jax]'") from error

from .leaves import Hidden, Leaves, Params, hidden_places, is_masked, leaves_of, plus, rounded
from .traced import Array, Options, ReachState, advanced, initial_reach, measured, norms

ScalarOrSchedule = Any  # a number, or a function of the number of steps before this one


class StraightenState(NamedTuple):
    """The state of :func:`straighten`: the base's, z − w of hidden leaves, and what κ depends on."""

    base_state: Any
    offset: Params
    reach_state: ReachState


class HatamState(NamedTuple):
    """The state of :func:`hatam`: that of ``optax.adamw``, the b2 and ε of the last step, and what κ depends on.

    ρ and N of a step are measured at the beginning of the next.
    """

    base_state: Any
    b2: Array
    eps: Array
    reach_state: ReachState


def straighten(
    base: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule | None = None,
    *,
    gamma: float = 0.2,
    travel: float = 15.0,
    horizon: float = 2.0,
    fade: float = 0.1,
    hidden: Hidden = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the late reach to any optimizer: the gradient is taken ahead of the base's z, along its last step.

    .. math::
        w = z - \kappa_t\, u_t, \qquad u_t = \frac{z_{t-1} - z_t}{\mathrm{lr}_t}

    It comes last: whatever changes its updates changes w. The state has a buffer of the hidden leaves' size, in their
    dtype. With bfloat16 parameters and ``init`` of float32 ones, the buffer is float32 and keeps z to that precision.

    Args:
        base: an optimizer that is complete, with its lr.
        learning_rate: the base's, a number or a schedule. Only its ratio to its peak matters. None takes the
            ``learning_rate`` of the base's ``optax.inject_hyperparams``. A schedule has to lower it.
        gamma, travel, horizon, fade: see :class:`hatam.HATAM`. γ = 0 is the base.
        hidden: which leaves have a reach: a tree of booleans, a prefix of one, or a function that gives one of the
            parameters. None means leaves of two dimensions or more, unless a part of their path names an embedding or
            the last a bias.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it, its value, its range and a remedy.

    Example:
        >>> import jax, optax
        >>> from hatam.optax import eval_params, straighten
        >>> schedule = optax.cosine_decay_schedule(0.1, 20)
        >>> optimizer = straighten(optax.sgd(schedule, momentum=0.9), schedule)
        >>> params = {"kernel": jax.numpy.ones((2, 2))}
        >>> state = optimizer.init(params)
        >>> for _ in range(20):
        ...     grads = jax.grad(lambda p: (p["kernel"] ** 2).sum())(params)
        ...     updates, state = optimizer.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> published = eval_params(state, params)
    """
    options = Options(gamma, travel, horizon, fade).checked()
    base = optax.with_extra_args_support(base)

    def init(params: Params) -> StraightenState:
        leaves, treedef = leaves_of(params)
        places = hidden_places(hidden, gamma, params)
        offsets = [jnp.zeros_like(x) if i in places else optax.MaskedNode() for i, x in enumerate(leaves)]
        state = StraightenState(base.init(params), treedef.unflatten(offsets), initial_reach(leaves))
        lr_of(learning_rate, state)  # refuses a base without one
        return state

    def update(grads: Params, state: StraightenState, params: Params = None, **extra: Any) -> Any:
        ws, treedef = leaves_of(params)
        slots = treedef.flatten_up_to(state.offset)
        last = {i: x for i, x in enumerate(slots) if not is_masked(x)}
        zs = plus(ws, last)
        updates, base_state = base.update(grads, state.base_state, treedef.unflatten(zs), **extra)
        lr = lr_of(learning_rate, state._replace(base_state=base_state))
        over_lr = jnp.where(lr > 0, 1 / jnp.where(lr > 0, lr, 1), 0)
        steps = treedef.flatten_up_to(updates)
        next_zs = {i: zs[i] + steps[i] for i in last}
        z_norms, step_norms = (norms(x, state.reach_state.reach) for x in (next_zs, {i: steps[i] for i in last}))
        reach_state = measured(advanced(state.reach_state, lr, options), z_norms, step_norms * over_lr)
        scales = reach_state.reach * over_lr
        steps = plus(steps, {i: last[i] + scales[i].astype(steps[i].dtype) * steps[i] for i in last})
        for i in last:
            w = rounded(ws[i] + steps[i], ws[i].dtype)
            slots[i] = (next_zs[i] - w).astype(last[i].dtype)  # and not κ u, so that rounding w does not move z
        return treedef.unflatten(steps), StraightenState(base_state, treedef.unflatten(slots), reach_state)

    return optax.GradientTransformationExtraArgs(init, update)


def hatam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    mask: Any = None,
    *,
    mu_dtype: Any = None,
    gamma: float = 0.2,
    travel: float = 15.0,
    horizon: float = 2.0,
    fade: float = 0.1,
    hidden: Hidden = None,
) -> optax.GradientTransformationExtraArgs:
    r"""HATAM: AdamW whose gradient is taken ahead of its iterate once lr falls, with AdamW's two buffers.

    .. math::
        z \leftarrow z - \mathrm{lr}_t (\hat m / h + \mathrm{wd}\, z), \qquad w = z - \kappa_t\, m / h

    It is :class:`hatam.HATAM` with the uniform modulator and the same defaults. It comes last: whatever changes its
    updates changes w.

    Args:
        learning_rate: a number or a schedule, which has to lower it.
        b1, b2, eps, weight_decay, mask, mu_dtype: see ``optax.adamw``. ``mask`` is for the weight decay.
        gamma, travel, horizon, fade: see :class:`hatam.HATAM`. γ = 0 is ``optax.adamw``.
        hidden: see :func:`straighten`.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it, its value, its range and a remedy.

    Example:
        >>> import jax, optax
        >>> from hatam.optax import eval_params, hatam
        >>> optimizer = hatam(optax.cosine_decay_schedule(0.1, 20))
        >>> params = {"kernel": jax.numpy.ones((2, 2))}
        >>> state = optimizer.init(params)
        >>> for _ in range(20):
        ...     grads = jax.grad(lambda p: (p["kernel"] ** 2).sum())(params)
        ...     updates, state = optimizer.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> published = eval_params(state, params)

    Source: the HATAM source document; AdamW is https://arxiv.org/abs/1711.05101.
    """
    options = Options(gamma, travel, horizon, fade).checked()
    base = optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask, mu_dtype=mu_dtype)

    def state_of(base_state: Any, reach_state: ReachState) -> HatamState:
        like = reach_state.reach.dtype
        return HatamState(base_state, jnp.asarray(b2, like), jnp.asarray(eps, like), reach_state)

    def init(params: Params) -> HatamState:
        return state_of(base.init(params), initial_reach(jax.tree.leaves(params)))

    def update(grads: Params, state: HatamState, params: Params = None, **extra: Any) -> Any:
        ws, treedef = leaves_of(params)
        places = hidden_places(hidden, gamma, params)
        us, kappas = directions(state, places), state.reach_state.reach
        last = offsets_of(us, kappas)
        zs = plus(ws, last)
        # ρ of the last step is measured here, and not at its end: norms of results would make XLA compute them again
        z_norms, u_norms = (norms(x, kappas) for x in ({i: zs[i] for i in places}, us))
        reach_state = measured(state.reach_state, z_norms, u_norms)
        updates, base_state = base.update(grads, state.base_state, treedef.unflatten(zs))
        state = state_of(base_state, reach_state)
        state = state._replace(reach_state=advanced(reach_state, lr_of(learning_rate, state), options))
        steps = treedef.flatten_up_to(updates)
        offsets = offsets_of(directions(state, places), state.reach_state.reach)
        return treedef.unflatten(plus(steps, {i: last[i] - offsets[i] for i in places})), state

    return optax.GradientTransformationExtraArgs(init, update)


def directions(state: HatamState, places: list[int]) -> Leaves:
    """Return u = m / h, with h = sqrt(v / (1 − b2^t)) + ε."""
    adam = state.base_state[0]
    ms, vs = jax.tree.leaves(adam.mu), jax.tree.leaves(adam.nu)
    correction = jnp.where(adam.count > 0, 1 - state.b2**adam.count, 1)
    hs = {i: jnp.sqrt(vs[i] / correction.astype(vs[i].dtype)) + state.eps.astype(vs[i].dtype) for i in places}
    return {i: ms[i] / hs[i] for i in places}


def offsets_of(us: Leaves, kappas: Array) -> Leaves:
    """Return κ u."""
    return {i: kappas[i].astype(u.dtype) * u for i, u in us.items()}


def eval_params(state: Any, params: Params) -> Params:
    """Return z, the parameters to evaluate and to publish, in the dtypes of the parameters.

    Args:
        state: of :func:`straighten` or :func:`hatam`, or of what has them inside, such as ``optax.MultiSteps``,
            ``optax.multi_transform`` and ``optax.inject_hyperparams``.
        params: the parameters w that belong to the state. With states of several seeds, use ``jax.vmap``.

    Raises:
        ValueError: there is no such state.
    """
    own = (StraightenState, HatamState)
    found = [x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, own)) if isinstance(x, own)]
    if not found:
        raise ValueError(f"state has none of hatam.optax: it is a {type(state).__name__}; pass the optimizer's state")
    for one in found:
        params = jax.tree.map(
            lambda offset, w: w if is_masked(offset) else (w + offset).astype(w.dtype),
            offset_tree(one),
            params,
            is_leaf=is_masked,
        )
    return params


def offset_tree(state: StraightenState | HatamState) -> Params:
    """Return z − w as a tree of the parameters, with ``optax.MaskedNode`` for leaves that are sure to have none."""
    if isinstance(state, StraightenState):
        return state.offset
    treedef: Any = jax.tree.structure(state.base_state[0].mu)
    us = directions(state, list(range(treedef.num_leaves)))
    return treedef.unflatten(offsets_of(us, state.reach_state.reach).values())


def lr_of(learning_rate: ScalarOrSchedule | None, state: StraightenState | HatamState) -> Array:
    """Return the lr of the step in which the base has come to its present state.

    Raises:
        ValueError: it is None, and the base's state does not have exactly one ``learning_rate`` of
            ``optax.inject_hyperparams``.
    """
    if learning_rate is None:
        nodes = jax.tree.leaves(state.base_state, is_leaf=lambda x: hasattr(x, "hyperparams"))
        found = [x.hyperparams["learning_rate"] for x in nodes if "learning_rate" in getattr(x, "hyperparams", ())]
        if len(found) != 1:
            raise ValueError(
                "learning_rate=None needs one learning_rate of optax.inject_hyperparams in the base's state, which has "
                f"{len(found)}: pass the base's number or schedule as learning_rate"
            )
        learning_rate = found[0]
    elif callable(learning_rate):
        learning_rate = learning_rate(state.reach_state.step_count)
    return jnp.asarray(learning_rate, state.reach_state.reach.dtype)
