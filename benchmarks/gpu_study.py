"""ResNet-18 on Fashion-MNIST with AdamW, SAM, Schedule-Free AdamW and HATAM. Needs a GPU, torch and Triton alone.

lr is chosen by validation, with the same grid for all, on one run of a quarter of the steps for each value. Then each
trains with three other seeds. The record is written after each run; what has a record is not run again.

``make gpu-study`` writes results/gpu/study.json. The four published files *-ubyte.gz are looked for in --data, in
data/fashion-mnist, and where Debian's dataset-fashion-mnist has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from schedule_free import ScheduleFree
from torch import Tensor, nn

from hatam import HATAM
from hatam.bench import files, report, schedules
from hatam.bench.batch_norm import statistics_of
from hatam.bench.tasks import Data, Split, fashion
from hatam.bench.tasks.scores import cross_entropy, percent_correct

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (ROOT / "data/fashion-mnist", fashion.FOLDER)
CONTENDERS = ("adamw", "sam", "schedule-free", "hatam")
LRS, WEIGHT_DECAY, RHO = (0.0005, 0.001, 0.002, 0.004), 0.1, 0.05
WIDTHS, BATCH, EPOCHS = (64, 64, 64, 128, 128, 256, 256, 512, 512), 512, 15
SEARCH, SEEDS = 40000, (41000, 41001, 41002)  # no other script has these


class Job(NamedTuple):
    """A run."""

    contender: str
    lr: float
    seed: int
    steps: int


def load(folder: Path, device: str) -> Data:
    """On the device; a twelfth of the training images is for validation."""
    read = ([fashion.read(folder / file).to(device) for file in files] for files in fashion.FILES.values())
    (x, y), test = (Split(x.unsqueeze(1).float() / 255, y.long()) for x, y in read)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).to(device)
    held, rest = order.split([len(order) // 12, len(order) - len(order) // 12])
    return Data(Split(x[rest], y[rest]), Split(x[held], y[held]), test)


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """HATAM at its defaults; the others have the same betas and weight decay."""
    options: dict[str, Any] = {"lr": 0.0, "betas": (0.9, 0.95), "weight_decay": WEIGHT_DECAY}
    if name in ("adamw", "sam"):
        return torch.optim.AdamW(model.parameters(), fused=True, **options)
    return (ScheduleFree if name == "schedule-free" else HATAM)(model.named_parameters(), **options)


def train(job: Job, data: Data) -> dict[str, Any]:
    """One run. The order of the images and their augmentation depend on the seed alone."""
    started, device, samples = time.perf_counter(), data.train.x.device, len(data.train.y)
    torch.manual_seed(job.seed)
    generator = torch.Generator(device).manual_seed(job.seed)
    model = fashion.resnet(WIDTHS).to(device)
    if device.type == "cuda":
        model.forward = torch.autocast("cuda", torch.bfloat16)(model.forward)
    optimizer, weights = optimizer_of(job.contender, model), [p.detach() for p in model.parameters()]

    def gradient(x: Tensor, y: Tensor) -> list[Tensor | None]:
        model.zero_grad()
        cross_entropy(model(x).float(), y).mean().backward()
        return [p.grad for p in model.parameters()]

    schedule = schedules.constant if job.contender == "schedule-free" else schedules.cosine
    for step in range(job.steps):
        place = step % (samples // BATCH) * BATCH
        if place == 0:
            order = torch.randperm(samples, generator=generator, device=device)
        chosen = order[place : place + BATCH]
        x, y = fashion.moved(data.train.x[chosen], generator), data.train.y[chosen]
        optimizer.param_groups[0]["lr"] = job.lr * schedule(step, job.steps, 0.05)
        grads = gradient(x, y)
        if job.contender == "sam":  # arXiv 2010.01412: the gradient at w + ρ g / ‖g‖
            kept = [w.clone() for w in weights]
            torch._foreach_add_(weights, torch._foreach_mul(grads, RHO / nn.utils.get_total_norm(grads)))
            gradient(x, y)
            torch._foreach_copy_(weights, kept)
        optimizer.step()
    found = evaluated(model, optimizer, data, final=job.seed != SEARCH)
    return {**found, "seconds": time.perf_counter() - started, "gradients_per_step": 1 + (job.contender == "sam")}


@torch.no_grad()
def evaluated(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, final: bool) -> dict[str, float]:
    """Accuracy in %, and the loss on training images; the test data are for the runs of the end alone."""

    def mean(score: Any, x: Tensor, y: Tensor) -> float:
        return float(score(torch.cat([model(part).float() for part in x.split(1000)]), y).mean())

    with getattr(optimizer, "straightened", nullcontext)(), statistics_of(model, data.train.x[:4096].split(BATCH)):
        model.eval()
        found = {"validation": mean(percent_correct, *data.validation)}
        if final:
            found["test"] = mean(percent_correct, *data.test)
            found["train_loss"] = mean(cross_entropy, *(tensor[:10_000] for tensor in data.train))
    return found


def next_job(steps: int, runs: dict[str, Any]) -> Job | None:
    """The first without a record: the search, then the end, seed by seed."""
    search = {name: [Job(name, lr, SEARCH, steps // 4) for lr in LRS] for name in CONTENDERS}
    if todo := [job for jobs in search.values() for job in jobs if str(job) not in runs]:
        return todo[0]
    best = [max(jobs, key=lambda job: runs[str(job)]["validation"]) for jobs in search.values()]
    end = (job._replace(seed=seed, steps=steps) for seed in SEEDS for job in best)
    return next((job for job in end if str(job) not in runs), None)


def table(record: Path = ROOT / "results/gpu/study.json") -> str:
    """A row for each contender with a final run: means over the seeds."""
    found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"runs": {}}
    ended: dict[str, list[dict[str, Any]]] = {}
    for run in found["runs"].values():
        if "test" in run:
            ended.setdefault(run["contender"], []).append(run)
    if not ended:
        return "Not run here."
    rows = ["| contender | lr | n | test accuracy, % | training loss | gradients a step | seconds a run |"]
    rows.append("|---|" + "---:|" * 6)
    for name, runs in ended.items():
        test, loss, seconds = (mean(float(run[key]) for run in runs) for key in ("test", "train_loss", "seconds"))
        cells = (name, f"{runs[0]['lr']:g}", f"{len(runs)}", f"{test:.2f}", f"{loss:.4f}")
        rows.append(f"| {' | '.join([*cells, str(runs[0]['gradients_per_step']), f'{seconds:.1f}'])} |")
    return "\n".join([*rows, "", f"{found['device']}, torch {found['torch']}, {found['epochs']} epochs."])


def main(arguments: list[str] | None = None) -> None:
    """Run what fits into the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the four files")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8, help="no run begins that would end after them (default 8)")
    parser.add_argument("--render", action="store_true", help="run nothing, fill docs/results.md in from the record")
    parser.add_argument("--out", type=Path, default=ROOT / "results/gpu/study.json")
    options, began = parser.parse_args(arguments), time.perf_counter()
    if options.render:
        report.fill_in(ROOT / "docs/results.md", "gpu-study", table())
        return
    folders = [each for each in (options.data, *FOLDERS) if each and (each / fashion.FILES["train"][0]).is_file()]
    if not folders:
        parser.error(f"no Fashion-MNIST in {', '.join(map(str, FOLDERS))}: give the folder of its files with --data")
    data, rate = load(folders[0], options.device), 0.0
    if options.device == "cuda":
        torch.backends.cudnn.benchmark = True
    runs = json.loads(options.out.read_text(encoding="utf-8"))["runs"] if options.out.exists() else {}
    where = {"device": torch.cuda.get_device_name() if options.device == "cuda" else "CPU", "epochs": EPOCHS}
    while job := next_job(EPOCHS * (len(data.train.y) // BATCH), runs):
        gradients = job.steps * (1 + (job.contender == "sam"))
        if time.perf_counter() - began + rate * gradients > 60 * options.minutes:
            sys.exit("the time is over; the same command goes on")
        runs[str(job)] = {**job._asdict(), **train(job, data)}
        rate = runs[str(job)]["seconds"] / gradients
        files.write(options.out, {**files.environment(), **where, "runs": runs})
        print(runs[str(job)], flush=True)


if __name__ == "__main__":
    main()
