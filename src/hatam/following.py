"""Optimizers that follow their model: ``model.eval()`` moves the weights to z, ``model.train()`` moves them back."""

from __future__ import annotations

import copyreg
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class Switching(Protocol):
    """An optimizer with ``train()`` and ``eval()``, or a wrapper around one."""

    def train(self) -> None: ...
    def eval(self) -> None: ...


class Handle:
    """The link from a model to its optimizers, which :func:`follow` makes."""

    def __init__(self, model: nn.Module, optimizers: tuple[Switching, ...]) -> None:
        self._model, self.optimizers = ref(model), optimizers

    def call_optimizers(self, training: bool) -> None:
        """Call ``train()`` or ``eval()`` of every optimizer, except inside its ``straightened()``.

        ``train()`` of an optimizer is called only if all its followed models are in training mode.
        """
        for optimizer in self.optimizers:
            if getattr(getattr(optimizer, "optimizer", optimizer), "_straightened", 0):
                continue
            if not training:
                optimizer.eval()
            elif not any_model_evaluating(optimizer):
                optimizer.train()

    def remove(self) -> None:
        """Stop calling the optimizers from the model's ``train()`` and ``eval()``. The weights do not move."""
        model = self._model()
        if model is None or self not in _handles.get(model, []):
            return
        _handles[model].remove(self)
        if not _handles[model] and "_followed_class" in vars(type(model)):  # otherwise other code has changed it since
            model.__class__ = vars(type(model))["_followed_class"]


_handles: WeakKeyDictionary[nn.Module, list[Handle]] = WeakKeyDictionary()


class Followed(nn.Module):
    """The mixin that :func:`follow` adds to a model's class."""

    def train(self: Module, mode: bool = True) -> Module:
        """Call ``train()`` of the model's own class, and then switch the optimizers."""
        super().train(mode)
        for handle in _handles.get(self, []):
            handle.call_optimizers(mode)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Reduce to the model's own class, so that copies and pickles are not followed."""
        made: Any = super().__reduce_ex__(protocol)
        own = vars(type(self)).get("_followed_class")
        return made if own is None else (copyreg._reconstructor, (own, object, None), *made[2:])  # type: ignore[attr-defined]


def any_model_evaluating(optimizer: Switching) -> bool:
    """Whether a followed model of an optimizer is in evaluation mode."""
    return any(
        optimizer in handle.optimizers and not model.training for model, found in _handles.items() for handle in found
    )


def follow(model: nn.Module, *optimizers: Switching) -> Handle:
    """Make ``model.eval()`` and ``model.train()`` also call ``eval()`` and ``train()`` of its optimizers.

    Training loops that first call ``model.eval()`` then evaluate, export and save the model at the straightened point.
    This works inside a larger model, ``torch.compile`` and DistributedDataParallel, and for a model under
    ``fully_shard``. Copies of the model (``copy.deepcopy``, an average of its weights) and pickles are not followed.
    An optimizer that follows several models returns to w when all of them are in training mode.

    Args:
        model: the model to follow. Calls on its submodules alone have no effect: a part may stay in ``eval()``.
        optimizers: :class:`hatam.HATAM`, or objects with ``train()`` and ``eval()`` such as accelerate's wrapper.

    Returns:
        a handle; ``handle.remove()`` ends the following.

    Raises:
        TypeError: ``model`` is not a module, or an optimizer has no ``train()`` or ``eval()``.

    Example:
        >>> import torch
        >>> from hatam import HATAM, follow
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = HATAM(model.parameters())
        >>> handle = follow(model, optimizer)
        >>> _ = model.eval()  # the weights are at z now
        >>> _ = model.train()
        >>> handle.remove()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    for optimizer in optimizers:
        if isinstance(optimizer, nn.Module):
            raise TypeError(f"optimizers: {type(optimizer).__name__} is a module; follow(model, optimizer)")
        for name in ("train", "eval"):
            if not callable(getattr(optimizer, name, None)):
                raise TypeError(
                    f"optimizers: {type(optimizer).__name__} has no {name}(); pass a hatam.HATAM or another "
                    "optimizer with train() and eval()"
                )
    handle = Handle(model, optimizers)
    handle.call_optimizers(model.training)
    _handles.setdefault(model, []).append(handle)
    if not isinstance(model, Followed):
        model.__class__ = _followed(type(model))
    return handle


def _followed(own: type[nn.Module]) -> type[nn.Module]:
    """A subclass of :class:`Followed` and a model's class, under the name of the latter."""
    names: dict[str, Any] = {"_followed_class": own, "__module__": own.__module__, "__qualname__": own.__qualname__}
    return type(own.__name__, (Followed, own), names)
