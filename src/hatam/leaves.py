"""The leaves of JAX's parameters: which have a reach, and sums over some of them."""

from __future__ import annotations

from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .state import is_embedding
from .traced import Array

Params = Any
Leaves = dict[int, Array]  # of hidden leaves, by their number among all
Hidden = Any  # a tree of booleans, a prefix of one, a function that gives one of the parameters, or None


def leaves_of(params: Params) -> tuple[list[Array], Any]:
    """Return the leaves of the parameters and their structure.

    Raises:
        ValueError: there are no parameters.
    """
    if params is None:
        raise ValueError("params=None: the reach needs the parameters; call update(grads, state, params)")
    return jax.tree.flatten(params)


def hidden_places(hidden: Hidden, gamma: Any, params: Params) -> list[int]:
    """Return the numbers of the leaves that have a reach; see :func:`straighten`. With γ = 0 none has."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if isinstance(gamma, Real) and gamma == 0:
        flags = [False] * len(leaves)
    elif hidden is None:
        flags = [is_hidden(path, leaf) for path, leaf in leaves]
    else:
        tree = hidden(params) if callable(hidden) else hidden
        flags = jax.tree.leaves(jax.tree.map(lambda flag, part: jax.tree.map(lambda _: bool(flag), part), tree, params))
    return [i for i, flag in enumerate(flags) if flag]


def is_hidden(path: Any, leaf: Array) -> bool:
    """Return whether a leaf is a hidden weight, by its dimensions and by the names on its path."""
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    return leaf.ndim >= 2 and not is_embedding(".".join(names)) and names[-1:] != ["bias"]


def is_masked(x: Any) -> bool:
    """Whether a node of a tree is ``optax.MaskedNode``."""
    return isinstance(x, optax.MaskedNode)


def plus(xs: list[Array], more: Leaves) -> list[Array]:
    """Return all leaves, with what is to be added to some."""
    return [x + more[i] if i in more else x for i, x in enumerate(xs)]


def rounded(x: Array, dtype: Any) -> Array:
    """Return x as it is in another dtype. A cast of a wider x alone may be optimized away before the next operation."""
    if x.dtype == dtype:
        return x
    narrow: Any = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    return jax.lax.reduce_precision(x, narrow.nexp, narrow.nmant)
