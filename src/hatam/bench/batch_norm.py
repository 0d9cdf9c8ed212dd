"""BatchNorm in evaluations.

The running statistics of a training belong to the weights at which its gradients are taken. Many contenders are
evaluated elsewhere: HATAM at z, Schedule-Free and others at an average. So one rule holds for all of them, AdamW too:
before an evaluation the statistics are computed anew, at the weights that are evaluated, from the first samples of the
training data as they are. Afterwards they are what they were. The training itself does not use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from .trainers import restoring


@contextmanager
def statistics_of(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Inside, BatchNorm's running statistics are the means over batches at the model's present weights.

    Args:
        model: where it has no BatchNorm, nothing happens.
        batches: inputs, each of at least two samples.

    Example:
        >>> import torch
        >>> model = nn.BatchNorm1d(1)
        >>> with statistics_of(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[4.0], [6.0]])]):
        ...     print(model.running_mean, model.running_var)
        tensor([3.5000]) tensor([2.])
        >>> print(model.running_mean)
        tensor([0.])
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with restoring(buffer for norm in norms for buffer in norm.buffers()):
        if norms:
            update_bn(batches, model)
        yield
