"""What tells a function of the user's from what it was before, so that its runs are done again when it has changed."""

from __future__ import annotations

import enum
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType
from typing import Any

import numpy as np
import torch

PLAIN = (bool, int, float, str, bytes, type(None), enum.Enum, torch.dtype, torch.device)


def digest(*functions: Callable[..., Any] | None) -> str:
    """Of functions or classes, by :func:`_text`; without those that are None."""
    return hashlib.sha256("".join(map(_text, filter(None, functions))).encode()).hexdigest()[:10]


def _text(x: Any, seen: tuple[Any, ...] = ()) -> str:
    """What tells a function from another: its text, and the functions, numbers and words that are bound to it.

    Of all else the type: a list that a closure fills would make each call a new one.
    """
    parts: list[Any] = []
    if any(x is other for other in seen):  # functions that know each other
        return ""
    if isinstance(x, partial):
        text, parts = "partial", [x.func, *x.args, *(item for pair in sorted(x.keywords.items()) for item in pair)]
    elif inspect.isfunction(x):
        text, parts = _lines(x), [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
        parts += [cell.cell_contents for cell in x.__closure__ or ()]
        parts += [value for name in _names(x.__code__) if isinstance(value := x.__globals__.get(name), PLAIN)]
    elif inspect.iscode(x):
        text, parts = f"{x.co_code.hex()} {x.co_names}", [*x.co_consts]
    elif inspect.isclass(x):
        text, own = f"{x.__module__}.{x.__qualname__}", [base for base in x.__mro__ if _is_own(base)]
        parts = [*map(_lines, own), *(f for base in own for f in vars(base).values() if inspect.isfunction(f))]
    elif inspect.ismethod(x):
        owner = x.__self__
        text, parts = "method", [x.__func__, *([owner] if inspect.isclass(owner) else [type(owner), *_held(owner)])]
    elif isinstance(x, np.generic):
        text = repr(x.item())
    elif isinstance(x, PLAIN):
        text = repr(x)
    elif callable(x) and (hasattr(x, "__dict__") or _is_own(type(x))):
        text, parts = f"object {getattr(x, '__name__', '')}", [type(x), *_held(x)]
    else:  # a function that is not Python's has a name at least
        text, parts = f"{type(x).__qualname__} {getattr(x, '__name__', '')}", [*x] if isinstance(x, tuple) else []
    return " ".join([text, *(_text(part, (*seen, x)) for part in parts)])


def _held(x: Any) -> Iterator[Any]:
    """The attributes of an object by name, those in slots too."""
    slots = (cls.__dict__.get("__slots__", ()) for cls in type(x).__mro__)
    names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
    for name in [*getattr(x, "__dict__", ()), *names]:
        yield from (name, getattr(x, name, None))


def _lines(x: Callable[..., Any]) -> str:
    """The text of a function or class; of one that was typed in, or read from a pipe, what was compiled from it."""
    try:
        return inspect.getsource(x)
    except (OSError, TypeError):
        return _text(x.__code__) if inspect.isfunction(x) else ""  # a class has its methods


def _is_own(cls: type) -> bool:
    """Whether a class is the user's, or of a package that is neither torch nor Python."""
    return cls.__module__.partition(".")[0] not in {"torch", *sys.stdlib_module_names}


def _names(code: CodeType) -> list[str]:
    """What a function and those inside it take from their module, or call an attribute by."""
    inner = [name for const in code.co_consts if inspect.iscode(const) for name in _names(const)]
    return sorted({*code.co_names, *inner})
