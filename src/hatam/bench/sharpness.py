"""How sharp the loss is at the end of training: the largest eigenvalue and the trace of its Hessian.

The loss is the mean loss of fixed samples of a split, drawn with a fixed seed, with the model in evaluation mode
(BatchNorm at its running statistics, no dropout): a function of the weights alone.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .tasks import Split, Task

TARGETS = 500  # at most so many targets in all: 500 samples of a classification, four of 125 words
MATVECS = 30  # of Hutch++, a multiple of 3
EXACT = 10 * MATVECS  # up to so many parameters the trace is not estimated
KEYS = ("lambda_max", "trace")

Array: TypeAlias = "np.ndarray[Any, Any]"
Params: TypeAlias = Sequence[nn.Parameter]


def measure(model: nn.Module, task: Task, split: Split) -> dict[str, float]:
    """Both numbers at the model's present weights; NaN where the loss is not finite there.

    The model, its gradients and the random generators are left as they are: it is a copy that is measured.

    Args:
        model: gives outputs of any shape that the task's loss takes.
        task: gives the loss.
        split: the samples to choose from.
    """
    model = copy.deepcopy(model).eval()
    params = [p for p in model.parameters() if p.requires_grad]
    order = torch.randperm(len(split.y), generator=torch.Generator().manual_seed(0))
    samples = order[: max(1, TARGETS * len(split.y) // split.y.numel())]

    # Fused attention cannot be differentiated twice.
    with torch.enable_grad(), torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(0)
        loss = task.loss(model(split.x[samples]), split.y[samples]).mean()
        gradient = flat_gradient(loss, params, create_graph=True)
        if not gradient.isfinite().all():
            return dict.fromkeys(KEYS, math.nan)
        hessian = Hessian(gradient, params)
        return dict(zip(KEYS, (hessian.largest_eigenvalue(), hessian.trace()), strict=True))


class Hessian:
    """Products with S H S for a diagonal S, by differentiating the gradient once more.

    Not curvlinops' operator: forward over reverse through torch's LayerNorm gives a wrong product for its weight
    (seen with torch 2.14 and curvlinops 3.0, against finite differences).

    Args:
        gradient: of the loss, flat, with its graph.
        params: of which it is the gradient.
        scale: the diagonal of S, flat; P^(-1/2) gives a matrix with the eigenvalues and the trace of P⁻¹H.
    """

    def __init__(self, gradient: Tensor, params: Params, scale: Tensor | float = 1.0) -> None:
        self.gradient, self.params, self.scale = gradient, params, scale
        self.shape, self.dtype, self.device = (len(gradient),) * 2, gradient.dtype, gradient.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with the columns of ``vectors``, shape ``(parameters, n)``."""
        return torch.stack([self.times(v) for v in vectors.T], dim=1)

    def times(self, v: Tensor) -> Tensor:
        """The product with one flat vector."""
        product = torch.autograd.grad(
            self.gradient, self.params, self.scale * v, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return self.scale * flat(product)

    def largest_eigenvalue(self) -> float:
        """By Lanczos, to 1% relative; NaN where that finds no end. Of a 2 × 2 matrix or less exactly."""
        if self.shape[0] <= 2:  # which Lanczos refuses
            whole = self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)
            return float(torch.linalg.eigvalsh(whole)[-1])

        def product(v: Array) -> Array:
            return self.times(torch.from_numpy(v).to(self.gradient)).double().cpu().numpy()

        start = np.random.default_rng(0).standard_normal(self.shape[0])  # the same weights give the same number
        if not product(start).any():
            return 0.0  # the matrix is 0, which ARPACK refuses
        operator = LinearOperator(self.shape, matvec=product, dtype=np.float64)
        try:
            (eigenvalue,) = eigsh(operator, k=1, which="LA", tol=1e-2, return_eigenvectors=False, v0=start)
        except ArpackError:  # of a measure the whole run must not be lost
            return math.nan
        return float(eigenvalue)

    def trace(self) -> float:
        """By Hutch++ (arXiv 2010.09649), to some 3%; exactly up to ``EXACT`` parameters."""
        if self.shape[0] <= EXACT:
            return float((self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)).trace())
        with warnings.catch_warnings():
            # Dependencies of curvlinops still use the deprecated torch.jit.script.
            warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
            from curvlinops import hutchpp_trace
        return float(hutchpp_trace(self, MATVECS))


def flat_gradient(loss: Tensor, params: Params, *, create_graph: bool = False) -> Tensor:
    """The gradient of a loss in one vector, 0 for parameters that it does not depend on."""
    return flat(torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True, materialize_grads=True))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """The elements of all tensors in one vector."""
    return torch.cat([x.reshape(-1) for x in tensors])
