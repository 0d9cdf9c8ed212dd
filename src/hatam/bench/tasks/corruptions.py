"""What may go wrong between the training's images and the world's: corruptions with a severity.

Images are float tensors of shape ``(n, channels, height, width)`` in [0, 1]; a severity of 0 changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Every image turned about its centre, bilinear, with 0 where nothing is known."""
    from scipy import ndimage

    turned = ndimage.rotate(images.numpy(), degrees, axes=(2, 3), reshape=False, order=1, mode="grid-constant")
    return torch.from_numpy(turned)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, its standard deviation in pixels."""
    from scipy import ndimage

    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def noisy(images: Tensor, sigma: float) -> Tensor:
    """Gaussian noise of standard deviation ``sigma``, clipped to [0, 1]; the same draw at every severity."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sigma * noise).clamp(0, 1)


def faded(images: Tensor, share: float) -> Tensor:
    """A share of each image's contrast lost: its values move towards their mean; 1 leaves nothing."""
    return images.lerp(images.mean((1, 2, 3), keepdim=True).expand_as(images), share)
