"""Shapes and contents of a file's inputs as options and configurations say them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.data import as_dtype
from onward.engine import Session
from onward.errors import ConfigError, DataError, OnwardError
from onward.graph import Array, TensorSpec, spec_of
from onward.passes import fix_inputs, fix_shapes, open_batch

__all__ = ["fixed", "opened", "parsed"]

_TRIED, _TOLERANCE = 3, 1e-4
"""Samples that are run together and one by one, and what may part of the largest element."""


def fixed(
    model: ir.Model, shapes: Mapping[str, Any] | None = None, constants: Mapping[str, Any] | None = None
) -> ir.Model:
    """The model with shapes of inputs that it leaves open, and with inputs that are constants.

    Args:
        model: it is not changed.
        shapes: by input: extents, as a list or a text with commas; a name, "?" or None leaves one open.
        constants: by input: numbers, booleans, texts, lists of them, or the name of a .npy file.

    Raises:
        ConfigError: there is no such input, or what is said does not fit it.
    """
    specs = {value.name or "": spec_of(value) for value in model.graph.inputs}
    if shapes:
        model = fix_shapes(model, {name: _extents(name, given) for name, given in shapes.items()})
    if constants:
        contents = {name: _content(name, given, specs.get(name)) for name, given in constants.items()}
        model = fix_inputs(model, contents)
    return model


def opened(model: ir.Model) -> ir.Model | None:
    """The model with its batch of one sample open, where several samples give what each alone gives.

    Args:
        model: it is not changed.

    Returns:
        None where inputs and outputs do not begin with an extent of 1, or samples cannot be run together.
    """
    found = open_batch(model)
    if found is None:
        return None
    rng = np.random.default_rng(0)
    inputs: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        spec = spec_of(value)
        shape = [_TRIED, *(d if isinstance(d, int) else 2 for d in (spec.shape or ())[1:])]
        drawn = rng.standard_normal(shape) if spec.dtype.kind == "f" else rng.integers(0, 2, shape)
        inputs[spec.name] = drawn.astype(spec.dtype)
    try:
        with Session(model, engine="interpreter") as single, Session(found, engine="interpreter") as several:
            each = [single.run({n: a[i : i + 1] for n, a in inputs.items()}) for i in range(_TRIED)]
            together = several.run(inputs)
    except OnwardError:
        return None
    for name, array in together.items():
        expected = np.concatenate([run[name] for run in each])
        if array.shape != expected.shape:
            return None
        apart = np.abs(array.astype(np.float64) - expected).max(initial=0.0)
        if not apart <= _TOLERANCE * max(float(np.abs(expected).max(initial=0.0)), 1e-30):
            return None
    return found


def parsed(option: str, texts: Sequence[str] | None) -> dict[str, Any]:
    """What NAME=VALUE options say, values as JSON where they are.

    Raises:
        ConfigError: an option is written otherwise, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ConfigError(f"{option} {text!r}: NAME=VALUE is needed")
        if name.strip() in found:
            raise ConfigError(f"{option}: {name.strip()!r} is given twice")
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip()] = value.strip()
    return found


def _extents(name: str, given: Any) -> list[int | str | None]:
    if isinstance(given, str):
        given = [part.strip() for part in given.strip("[]").split(",") if part.strip()]
    elif isinstance(given, int) and not isinstance(given, bool):
        given = [given]
    if not isinstance(given, Sequence):
        raise ConfigError(f"shape of input {name!r}: extents with commas are needed, got {given!r}")
    found: list[int | str | None] = []
    for part in given:
        if isinstance(part, str) and part.isascii() and part.isdecimal():
            part = int(part)
        number = isinstance(part, str) and part[:1] in "0123456789+-."
        if part is not None and (isinstance(part, bool) or number or not isinstance(part, int | str)):
            raise ConfigError(f"shape of input {name!r}: {part!r} is neither a number nor a name")
        found.append(None if part == "?" else part)
    return found


def _content(name: str, given: Any, spec: TensorSpec | None) -> Array:
    if isinstance(given, str) and given.endswith(".npy"):
        try:
            array = np.load(Path(given), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"contents of input {name!r}: {given} cannot be read: {error}") from None
    else:
        array = np.asarray(given)
    if spec is None or array.dtype == spec.dtype:
        return array
    if spec.dtype.kind == "O" and array.dtype.kind in "US":
        return array.astype(object)
    try:
        return as_dtype(array, spec.dtype, f"contents of input {name!r}: what is given")
    except DataError as error:
        raise ConfigError(str(error)) from None
