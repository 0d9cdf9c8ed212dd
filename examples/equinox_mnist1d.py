"""HATAM in JAX: 64 seeds of an MLP on MNIST-1D in one program, timed against PyTorch, one seed after the other.

Needs, in a clone: pip install '.[bench,jax]' equinox. Run it with: python examples/equinox_mnist1d.py
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import torch

import hatam
from hatam.bench.tasks import find
from hatam.optax import eval_params
from hatam.optax import hatam as hatam_for_optax

LR, BATCH = 0.03, 128
TASK = find("mnist1d-mlp")


class MLP(eqx.Module):
    """As in the task: width 100, one residual block."""

    layers: list[eqx.nn.Linear]

    def __init__(self, key):
        sizes = [(40, 100), (100, 100), (100, 10)]
        self.layers = [eqx.nn.Linear(*size, key=k) for size, k in zip(sizes, jax.random.split(key, 3), strict=True)]

    def __call__(self, x):
        first, second, last = self.layers
        h = jax.nn.relu(first(x))
        return last(h + jax.nn.relu(second(h)))


def train_jax(seed, data, steps):
    """Accuracy on the test data at z, in %, of one seed; ``jax.vmap`` makes it one of many."""
    x, y, test_x, test_y = data
    optimizer = hatam_for_optax(optax.cosine_decay_schedule(LR, steps))
    model_key, batch_key = jax.random.split(jax.random.key(seed))
    model, rest = eqx.partition(MLP(model_key), eqx.is_array)

    def loss(model, batch):
        logits = jax.vmap(eqx.combine(model, rest))(x[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[batch]).mean()

    def step(carry, key):
        model, state = carry
        grads = jax.grad(loss)(model, jax.random.randint(key, (BATCH,), 0, len(x)))
        updates, state = optimizer.update(grads, state, model)
        return (eqx.apply_updates(model, updates), state), None

    (model, state), _ = jax.lax.scan(step, (model, optimizer.init(model)), jax.random.split(batch_key, steps))
    logits = jax.vmap(eqx.combine(eval_params(state, model), rest))(test_x)
    return 100 * (logits.argmax(1) == test_y).mean()


def train_torch(seed, data, steps):
    """The same in PyTorch."""
    torch.manual_seed(seed)
    model = TASK.model()
    optimizer = hatam.HATAM(model.named_parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(data.train.x), (BATCH,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.train.x[batch]), data.train.y[batch]).backward()
        optimizer.step()
        schedule.step()
    with optimizer.straightened(), torch.no_grad():
        return float(TASK.metric(model(data.test.x), data.test.y).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--steps", type=int, default=TASK.steps)
    parser.add_argument("--torch-seeds", type=int, default=8, help="trained in PyTorch; their mean time counts")
    options = parser.parse_args()
    data = TASK.data()
    arrays = [jnp.asarray(part.numpy()) for part in (*data.train, *data.test)]

    many = jax.jit(jax.vmap(train_jax, (0, None, None)), static_argnums=2)
    start = time.perf_counter()
    compiled = many.lower(jnp.arange(options.seeds), arrays, options.steps).compile()
    compiling = time.perf_counter() - start
    start = time.perf_counter()
    scores = compiled(jnp.arange(options.seeds), arrays).block_until_ready()
    in_jax = time.perf_counter() - start

    start = time.perf_counter()
    torch_scores = torch.tensor([train_torch(seed, data, options.steps) for seed in range(options.torch_seeds)])
    in_torch = (time.perf_counter() - start) / options.torch_seeds * options.seeds

    print(f"JAX: {options.seeds} seeds in {in_jax:.1f} s, and {compiling:.1f} s to compile")
    print(f"PyTorch: {in_torch:.1f} s for as many, from {options.torch_seeds} one by one")
    print(f"PyTorch takes {in_torch / in_jax:.2f} times as long")
    print(f"accuracy in PyTorch: {torch_scores.mean():.1f}%, in JAX: {float(scores.mean()):.1f}")


if __name__ == "__main__":
    main()
