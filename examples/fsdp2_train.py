"""A byte-level transformer on Python's own documentation, sharded by FSDP2 over any number of processes.

Needs, in a clone: pip install . On CPUs (gloo) or, where there are GPUs, on those (NCCL):

    torchrun --standalone --nproc-per-node 2 examples/fsdp2_train.py --folder runs/fsdp2

The same command goes on from the last checkpoint, also with another number of processes, and also from a checkpoint of
a training that was begun with --optimizer adamw.
"""

import argparse
import os
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from hatam import HATAM, param_groups

CONTEXT, BATCH = 64, 16  # the batch is that of all processes together


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tokens(x) + self.places.weight
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def windows(text: torch.Tensor, seed: int, n: int = BATCH) -> torch.Tensor:
    """Pieces of text, each with the byte that follows it: the same for a step whatever the number of processes."""
    rng = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (n, 1), generator=rng)
    return text[starts + torch.arange(CONTEXT + 1)]


def loss(model: nn.Module, pieces: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


class Training:
    """What a checkpoint holds besides the model: the optimizer and how far the training has come."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        self.model, self.optimizer, self.folder = model, optimizer, folder
        self.saving, self.savers = None, dist.new_group(backend="gloo")  # which must not wait for training's messages

    def state(self, step: int) -> dict:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "step": step}

    def save(self, step: int) -> None:
        """In the background; the one before must be done."""
        self.wait()
        where = self.folder / f"step-{step:06d}"
        self.saving = dcp.async_save(self.state(step), checkpoint_id=where, process_group=self.savers)

    def wait(self) -> None:
        if self.saving is not None:
            self.saving.result()

    def resume(self) -> int:
        """From the last checkpoint that was written whole; its step, 0 where there is none."""
        whole = sorted(self.folder.glob("step-*/.metadata"))
        if not whole:
            return 0
        state = self.state(0)
        # A checkpoint of AdamW lacks what HATAM has beyond: that stays as it is at the beginning.
        dcp.load(state, checkpoint_id=whole[-1].parent, planner=DefaultLoadPlanner(allow_partial_load=True))
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return int(state["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the checkpoints")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20, help="steps from one checkpoint to the next")
    parser.add_argument("--optimizer", choices=("hatam", "adamw"), default="hatam")
    parser.add_argument("--weights", type=Path, help="where the trained weights go, in one file")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    text = torch.tensor(list("\n".join(topics[key] for key in sorted(topics)).encode()))

    torch.manual_seed(0)
    model = Transformer().to(device)
    mesh = init_device_mesh(device, (size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    make = {"hatam": HATAM, "adamw": torch.optim.AdamW}[args.optimizer]
    optimizer = make(param_groups(model, weight_decay=0.1), lr=3e-3, betas=(0.9, 0.95))

    training = Training(model, optimizer, args.folder)
    first = training.resume()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 10, (args.steps - step) / (0.5 * args.steps))
        mine = windows(text, step).to(device).chunk(size)[rank]
        optimizer.zero_grad()
        loss(model, mine).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % args.every == 0:
            training.save(step + 1)
            if rank == 0:
                print(f"step {step + 1}", flush=True)
    training.wait()

    straightened = getattr(optimizer, "straightened", torch.no_grad)  # AdamW is where it is
    with straightened(), torch.no_grad():
        found = loss(model, windows(text, 10**6, 64).to(device)).item()
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        if args.weights:
            torch.save(weights, args.weights)
        print(f"from step {first} to {args.steps} on {size} processes, loss: {found:.6f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
