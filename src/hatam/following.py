"""Optimizers that go where their model goes: ``model.eval()`` takes the weights to z, ``model.train()`` back."""

from __future__ import annotations

import copyreg
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class Switching(Protocol):
    """An optimizer with a point to evaluate, or what a host has wrapped around one."""

    def train(self) -> None: ...
    def eval(self) -> None: ...


class Handle:
    """The link from a model to its optimizers, as :func:`follow` makes it."""

    def __init__(self, model: nn.Module, optimizers: tuple[Switching, ...]) -> None:
        self._model, self.optimizers = ref(model), optimizers

    def switch(self, training: bool) -> None:
        """``eval()`` or ``train()`` of all optimizers.

        ``train()`` waits until every followed model of an optimizer trains. Inside ``straightened()`` nothing moves.
        """
        for optimizer in self.optimizers:
            if getattr(getattr(optimizer, "optimizer", optimizer), "_straightened", 0):
                continue
            if not training:
                optimizer.eval()
            elif not waits(optimizer):
                optimizer.train()

    def remove(self) -> None:
        """The model's ``train()`` and ``eval()`` are its own again; the optimizers stay where they are."""
        model = self._model()
        if model is None or self not in _handles.get(model, []):
            return
        _handles[model].remove(self)
        if not _handles[model] and "_followed_class" in vars(type(model)):  # else others have changed the class since
            model.__class__ = vars(type(model))["_followed_class"]


_handles: WeakKeyDictionary[nn.Module, list[Handle]] = WeakKeyDictionary()


class Followed(nn.Module):
    """What :func:`follow` puts in front of a model's class."""

    def train(self: Module, mode: bool = True) -> Module:
        """The model's own, and then that of the optimizers."""
        super().train(mode)
        for handle in _handles.get(self, []):
            handle.switch(mode)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are of the model's own class, and nobody follows them."""
        made: Any = super().__reduce_ex__(protocol)
        own = vars(type(self)).get("_followed_class")
        return made if own is None else (copyreg._reconstructor, (own, object, None), *made[2:])  # type: ignore[attr-defined]


def waits(optimizer: Switching) -> bool:
    """Whether another model of an optimizer is being evaluated."""
    return any(
        optimizer in handle.optimizers and not model.training for model, found in _handles.items() for handle in found
    )


def follow(model: nn.Module, *optimizers: Switching) -> Handle:
    """Have ``model.eval()`` and ``model.train()`` call the same of its optimizers.

    So the model is evaluated, exported and saved at the straightened point wherever a loop calls ``model.eval()``
    first. It works through whatever holds the model: a larger model, ``torch.compile``, DistributedDataParallel, and
    for a model that ``fully_shard`` has cut. Copies of the model (``copy.deepcopy``, an average of its weights) and
    pickles of it follow nobody. Where an optimizer has several models, it goes back when all of them train.

    Args:
        model: whose calls are followed. Those of its submodules are not: a part may stay in ``eval()``.
        optimizers: :class:`hatam.HATAM`, or whatever has ``train()`` and ``eval()``, such as accelerate's wrapper.

    Returns:
        a handle; ``handle.remove()`` ends it.

    Raises:
        TypeError: not a module, or an optimizer without ``train()`` and ``eval()``.

    Example:
        >>> import torch
        >>> from hatam import HATAM, follow
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = HATAM(model.parameters())
        >>> handle = follow(model, optimizer)
        >>> _ = model.eval()  # the weights are at the point to evaluate now
        >>> _ = model.train()
        >>> handle.remove()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    for optimizer in optimizers:
        for name in ("train", "eval"):
            if not callable(getattr(optimizer, name, None)):
                raise TypeError(
                    f"optimizers: {type(optimizer).__name__} has no {name}(); follow a hatam.HATAM: only "
                    "such an optimizer has a point to evaluate"
                )
    handle = Handle(model, optimizers)
    handle.switch(model.training)
    _handles.setdefault(model, []).append(handle)
    if not isinstance(model, Followed):
        model.__class__ = _followed(type(model))
    return handle


def _followed(own: type[nn.Module]) -> type[nn.Module]:
    """The class with what :class:`Followed` adds, under the same name."""
    names: dict[str, Any] = {"_followed_class": own, "__module__": own.__module__, "__qualname__": own.__qualname__}
    return type(own.__name__, (Followed, own), names)
