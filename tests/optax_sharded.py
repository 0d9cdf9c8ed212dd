"""Parameters on eight devices: the numbers of one device, and Optax's own tests of sharding. See test_optax.py."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from test_optax import BASES, cosine, run, schedule, training, worst

from hatam.optax import hatam, straighten

RATES = schedule(cosine(30, 0.1))
KINDS = {"hatam": partial(hatam, RATES), "straighten": partial(straighten, BASES["sgd"](RATES), RATES)}


def main() -> None:
    from optax._src import sharding_test  # importing it warns

    assert jax.device_count() == 8
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    specs = {"bias": PartitionSpec(), "block": PartitionSpec("a"), "kernel": PartitionSpec("b", "a")}
    rng, shapes = np.random.default_rng(0), {"bias": (7,), "block": (8, 3, 4), "kernel": (6, 8)}
    params = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    grads = {key: rng.standard_normal((30, *shape)).astype(np.float32) for key, shape in shapes.items()}
    placed = {key: jax.device_put(x, NamedSharding(mesh, specs[key])) for key, x in params.items()}
    for kind, make in KINDS.items():
        optimizer = make(travel=0.0)
        state = optimizer.init(placed)
        buffers = state.base_state[0].mu if kind == "hatam" else state.offset
        assert buffers["kernel"].sharding == placed["kernel"].sharding
        found = jax.device_get(training(optimizer)(placed, state, grads))
        assert worst(found[1:], run(optimizer, params, grads)[1:]) < 1e-5
        assert np.abs(found[1]["kernel"] - found[2]["kernel"]).max() > 0.01

    jax.__version__ = "0.9"  # Optax compares it as a string, and would skip its tests for 0.10
    for make in (partial(hatam, 1.0, hidden=True), partial(straighten, optax.sgd(1.0), 1.0, hidden=True)):
        for name in ("init_with_abstract_input", "state_sharding_type_init_match_update"):
            test = getattr(sharding_test.ShardingTest, f"test_{name}_adam")
            test.__wrapped__(sharding_test.ShardingTest(f"test_{name}_adam"), make())


if __name__ == "__main__":
    main()
