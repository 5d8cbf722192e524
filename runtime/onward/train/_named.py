"""What configuration files call by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from onward.errors import ConfigError

__all__ = ["create"]

_T = TypeVar("_T")


def create(kind: str, classes: Mapping[str, type[_T]], name: str, options: Mapping[str, Any]) -> _T:
    """The object of a name, made with these options.

    Args:
        kind: what messages call it.
        classes: the classes by name.
        name: one of these names.
        options: keyword arguments of the class.

    Raises:
        ConfigError: an unknown name or option, or an option that is missing.
    """
    if name not in classes:
        raise ConfigError(f"unknown {kind} {name!r}; there are {', '.join(classes)}")
    known = inspect.signature(classes[name]).parameters
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(
            f"{kind} {name!r} has no option {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(known) or 'none'}"
        )
    try:
        return classes[name](**options)
    except TypeError as error:
        raise ConfigError(f"{kind} {name!r}: {error}") from None
