"""How sharp the loss is at the end of training."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from .tasks import Split, Task


class _MeanLoss(nn.Module):
    """A task's loss as curvlinops wants it."""

    reduction = "mean"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(outputs, targets).mean()


def largest_eigenvalue(model: nn.Module, task: Task, split: Split, samples: int = 1000) -> float:
    """λ_max of the Hessian of the mean loss over the first ``samples`` of a split, by Lanczos to 1% relative."""
    with warnings.catch_warnings():
        # Dependencies of curvlinops and torch's forward-mode autodiff still use the deprecated torch.jit.script.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        from curvlinops import HessianLinearOperator

        params = [p for p in model.parameters() if p.requires_grad]
        data = [(split.x[:samples], split.y[:samples])]
        model.eval()  # a batch norm would otherwise learn from being measured
        hessian = HessianLinearOperator(model, _MeanLoss(task), params, data, check_deterministic=False)
        start = np.random.default_rng(0).standard_normal(hessian.shape[0]).astype(np.float32)  # same weights, same λ
        (eigenvalue,) = eigsh(hessian.to_scipy(), k=1, which="LA", tol=1e-2, return_eigenvectors=False, v0=start)
        model.train()
    return float(eigenvalue)
