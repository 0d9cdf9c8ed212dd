"""How sharp the loss is at the end of training, in six numbers that are made in one way for all contenders.

The loss is the mean loss of fixed samples of a split, drawn with a fixed seed, with the model in evaluation mode
(BatchNorm at its running statistics, no dropout): a function of the weights alone. H is its Hessian.

- ``lambda_max``, ``trace``: of H.
- ``preconditioned_lambda_max``, ``preconditioned_trace``: of P⁻¹H, with P = diag(√v + ε) and v the mean of the squared
  gradients of ``BATCHES`` mini-batches at the final weights. This is what Adam's second moment would come to if the
  weights stood still, and it is the same rule for optimizers that have no such state (arXiv 2207.14484 for its use).
- ``m_sharpness``: by how much a step of length ρ = ``RHO`` along its gradient raises the loss of a batch of m samples,
  the mean over ``BATCHES`` batches, m being an eighth of the samples (arXiv 2010.01412).
- ``adaptive_sharpness``: the same with the step measured in units of each weight, ‖δ/\\|w\\|‖₂ ≤ ρ with
  ρ = ``ADAPTIVE_RHO``, which leaves it unmoved by rescalings that leave the function unmoved (arXiv 2102.11600).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .tasks import Split, Task

TARGETS = 1000  # at most so many targets in all: 1000 samples of a classification, eight of 125 words
BATCHES = 8
MATVECS = 30  # of Hutch++, a multiple of 3
EXACT = 10 * MATVECS  # up to so many parameters the trace is not estimated
RHO = 0.05
ADAPTIVE_RHO = 0.5
EPS = 1e-8

KEYS = (
    "lambda_max",
    "trace",
    "preconditioned_lambda_max",
    "preconditioned_trace",
    "m_sharpness",
    "adaptive_sharpness",
)

Array: TypeAlias = "np.ndarray[Any, Any]"
Params: TypeAlias = Sequence[nn.Parameter]
LossOf: TypeAlias = Callable[[Tensor], Tensor]  # the mean loss of the samples with these numbers


def measure(model: nn.Module, task: Task, split: Split) -> dict[str, float]:
    """The six numbers of this module at the model's present weights; all NaN where the loss is not finite there.

    The model, its gradients and the random generators are left as they are: it is a copy that is measured.

    Args:
        model: gives outputs of any shape that the task's loss takes.
        task: gives the loss, and the size of a mini-batch for v.
        split: the samples to choose from.
    """
    model = copy.deepcopy(model).eval()
    params = [p for p in model.parameters() if p.requires_grad]
    order = torch.randperm(len(split.y), generator=torch.Generator().manual_seed(0))
    samples = order[: max(1, TARGETS * len(split.y) // split.y.numel())]

    def loss(chosen: Tensor) -> Tensor:
        return task.loss(model(split.x[chosen]), split.y[chosen]).mean()

    # Fused attention cannot be differentiated twice.
    with torch.enable_grad(), torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(0)
        gradient = flat_gradient(loss(samples), params, create_graph=True)
        if not gradient.isfinite().all():
            return dict.fromkeys(KEYS, math.nan)
        h = second_moment(loss, params, torch.split(order, task.batch_size)).sqrt() + EPS
        plain, preconditioned = Hessian(gradient, params), Hessian(gradient, params, h.rsqrt())
        numbers = (
            *(plain.largest_eigenvalue(), plain.trace()),
            *(preconditioned.largest_eigenvalue(), preconditioned.trace()),
        )
        batches = samples[: len(samples) // BATCHES * BATCHES or None].tensor_split(min(BATCHES, len(samples)))
        rises = ascent(loss, params, batches, RHO), ascent(loss, params, batches, ADAPTIVE_RHO, adaptive=True)
    return dict(zip(KEYS, (*numbers, *rises), strict=True))


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


def second_moment(loss: LossOf, params: Params, batches: Sequence[Tensor]) -> Tensor:
    """v: the mean of the squared gradients of the first ``BATCHES`` of the batches, flat."""
    chosen = [batch for batch in batches[:BATCHES] if len(batch) == len(batches[0])]
    return torch.stack([flat_gradient(loss(batch), params).square() for batch in chosen]).mean(0)


@torch.no_grad()
def ascent(loss: LossOf, params: Params, batches: Sequence[Tensor], rho: float, *, adaptive: bool = False) -> float:
    """By how much one step along the gradient raises the loss of a batch, the mean over the batches.

    The step is δ = ρ T²g / ‖Tg‖₂, which maximizes the linearized loss where ‖T⁻¹δ‖₂ ≤ ρ; T = 1, or |w| if adaptive.
    It moves the parameters and puts them back.
    """
    start = [p.clone() for p in params]
    w = flat(start)
    scale = w.abs() if adaptive else torch.ones_like(w)
    rises = []
    for batch in batches:
        with torch.enable_grad():
            before = loss(batch)
            gradient = flat_gradient(before, params)
        norm = (scale * gradient).norm().clamp_min(torch.finfo(w.dtype).tiny)
        nn.utils.vector_to_parameters(w + rho * scale.square() * gradient / norm, params)
        rises.append(loss(batch) - before)
        nn.utils.vector_to_parameters(w, params)
    return float(torch.stack(rises).mean())


def flat_gradient(loss: Tensor, params: Params, *, create_graph: bool = False) -> Tensor:
    """The gradient of a loss in one vector, 0 for parameters that it does not depend on."""
    return flat(torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True, materialize_grads=True))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """The elements of all tensors in one vector."""
    return torch.cat([x.reshape(-1) for x in tensors])
