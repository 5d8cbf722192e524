"""The networks of the zoo by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from onward.errors import ConfigError
from onward.nn.network import Network

__all__ = ["build", "names", "register", "scaled"]

_F = TypeVar("_F", bound=Callable[..., Network])
_networks: dict[str, Callable[..., Network]] = {}


def register(function: _F) -> _F:
    """Make a function that returns a network known under its own name."""
    _networks[function.__name__] = function
    return function


def names() -> tuple[str, ...]:
    """The networks that `build` knows."""
    return tuple(sorted(_networks))


def build(name: str, **options: Any) -> Network:
    """A network of the zoo.

    Args:
        name: one of `names()`.
        options: keyword arguments of the function of that name.

    Raises:
        ConfigError: the network or an option is unknown, or its value cannot be used.
        ShapeError: the options do not fit together; the message names the layer.
    """
    if name not in _networks:
        raise ConfigError(f"unknown network {name!r}; the zoo has {', '.join(names())}")
    function = _networks[name]
    known = inspect.signature(function).parameters
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(
            f"network {name!r} has no option {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        )
    return function(**options)


def scaled(channels: int, width: float, divisor: int = 1) -> int:
    """Channels times a width multiplier: a multiple of the divisor, and at least one of it.

    Rounds to the nearest multiple, but never below 90 % of the product (MobileNet's rule).
    """
    wanted = channels * width
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * wanted else rounded
