"""Sharded parameters under a wrapped optimizer: … wrapped_cases.py OUT wrapped. See test_wrapper_hosts.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from distributed_cases import CASES, error, main, network, sharded_fully, train, world
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import SGD, AdamW, Optimizer

from hatam import Straightened, sharded

BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda params: SGD(params, 0.02, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda params: AdamW(params, 3e-3),
}


def falling(model: nn.Module, make: Callable[[Any], Optimizer]) -> Straightened:
    """A wrapped optimizer in the second half of a schedule, whose every tensor has a reach."""
    optimizer = Straightened(make(model.parameters()), travel=0.0, horizon=10.0, hidden=True)
    for group in optimizer.param_groups:
        group["lr_peak"] = 2 * group["lr"]
    return optimizer


def case_wrapped() -> dict[str, float]:
    """FSDP2 beside the whole network; and a training that goes on from the state dict of distributed checkpoints."""
    size, rank = dist.get_world_size(), dist.get_rank()
    errors = {}
    for (name, make), dtype in ((base, dtype) for base in BASES.items() for dtype in (torch.float32, torch.float64)):
        whole, part, other = network(dtype), sharded_fully(network(dtype), world()), network(dtype)
        optimizers = [falling(m, make) for m in (whole, part)]
        train(whole, optimizers[0], 0, 8)
        train(part, optimizers[1], 0, 8, size, rank)

        weights, state = copy.deepcopy(get_state_dict(part, optimizers[1]))  # torch does not copy what it loads
        assert sum(key.endswith("weight") and "offset" in own for key, own in state["state"].items()) == 7
        resumed = sharded_fully(other, world())
        optimizers.append(falling(resumed, make))
        set_state_dict(resumed, optimizers[2], model_state_dict=weights, optim_state_dict=state)

        train(whole, optimizers[0], 8, 16)
        for model, optimizer in zip((part, resumed), optimizers[1:], strict=True):
            train(model, optimizer, 8, 16, size, rank)
        weight = next(iter(part.parameters()))
        assert optimizers[1].state[weight]["reach"] > 0
        assert isinstance(optimizers[1].state[weight]["offset"], type(weight.data))
        assert all(
            torch.equal(sharded.local_tensor(p), sharded.local_tensor(q))
            for p, q in zip(part.parameters(), resumed.parameters(), strict=True)
        )
        errors[f"{name}, {dtype}"] = error(list(part.parameters()), list(whole.parameters()))
        with optimizers[0].straightened(), optimizers[1].straightened():
            at_z = error(list(part.parameters()), list(whole.parameters()))
        errors[f"{name}, {dtype}, at z"] = at_z
    return errors


CASES["wrapped"] = case_wrapped

if __name__ == "__main__":
    main()
