"""The networks of the zoo by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_origin, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

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
    _check_types(name, function, options)
    return function(**options)


def _check_types(name: str, function: Callable[..., Network], options: Mapping[str, Any]) -> None:
    """Refuse values that are not of an option's annotated type."""
    types = get_type_hints(function)
    for option, value in options.items():
        try:
            TypeAdapter(types[option]).validate_python(_plain(value), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            if not problem["loc"] and get_origin(types[option]) is Sequence:
                said = f"a list is needed, such as {option}=[{value}]"
            else:
                place = "".join(f"item {part}: " for part in problem["loc"])
                said = place + problem["msg"][:1].lower() + problem["msg"][1:]
            raise ConfigError(f"network {name!r}, option {option!r}: {said}; got {value!r}") from None


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def scaled(channels: int, width: float, divisor: int = 1) -> int:
    """Channels times a width multiplier: a multiple of the divisor, and at least one of it.

    Rounds to the nearest multiple, but never below 90 % of the product (MobileNet's rule).
    """
    wanted = channels * width
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * wanted else rounded
