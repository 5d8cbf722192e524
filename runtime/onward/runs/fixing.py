"""Shapes and contents of a file's inputs as options and configurations say them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.compile.independence import independence
from onward.data import as_dtype
from onward.engine import Session
from onward.errors import ConfigError, DataError, OnwardError
from onward.graph import Array, TensorSpec, is_tensor, spec_of
from onward.passes import fix_inputs, fix_shapes, open_batch

__all__ = ["fixed", "opened", "parsed"]

_TRIED, _TOLERANCE = 3, 1e-4
"""Samples that are run together and one by one, and what may part of the largest element."""
_DRAWS = range(3)
"""Rounds, each of other numbers."""
_EXTENTS = 2, 7, 48
"""In the place of extents that a file leaves open."""


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

    The graph is asked for a proof. Where that does not reach, and finds nothing either in which samples
    meet, they are tried: together and one by one, by all values that are computed on the way, since outputs
    may hide what happens in front of a threshold or an ArgMax.

    Args:
        model: it is not changed.

    Returns:
        None where inputs and outputs do not begin with an extent of 1, or samples may depend on each other.
    """
    found = open_batch(model)
    if found is None:
        return None
    inputs = [spec_of(v) for v in found.graph.inputs if v.name not in found.graph.initializers]
    settled = all(isinstance(d, int) for spec in inputs for d in (spec.shape or ())[1:])
    fits = False
    for extent in _EXTENTS[: 1 if settled else None]:
        shapes = {s.name: tuple(d if isinstance(d, int) else extent for d in s.shape or ()) for s in inputs}
        proof = independence(found, shapes)
        if proof.misfit:
            continue
        fits = True
        if proof.mixed or (proof.reason is not None and not _apart(model, found, shapes)):
            return None
    return found if fits else None


def _apart(single: ir.Model, several: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a few samples give together what each alone gives, in outputs and all values on the way.

    Args:
        single: takes one sample.
        several: the same for any number.
        shapes: of the inputs; their first extents count for nothing.
    """
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
           for node in several.graph for a in node.attributes.values()):  # fmt: skip
        return False  # which body runs may follow from the samples
    outputs = {v.name for v in single.graph.outputs}
    common = {v.name for node in single.graph for v in node.outputs if v.name and is_tensor(v)}
    shown = outputs | {v.name for node in several.graph for v in node.outputs if v.name in common}
    try:
        with (
            Session(_showing(single, shown), engine="interpreter") as one,
            Session(_showing(several, shown), engine="interpreter") as together,
        ):
            return all(_same(one, together, _drawn(single, shapes, draw), outputs) for draw in _DRAWS)
    except OnwardError:
        return False


def _same(
    one: Session, together: Session, inputs: Mapping[str, Array], outputs: Collection[str | None]
) -> bool:
    each = [one.run({n: a[i : i + 1] for n, a in inputs.items()}) for i in range(_TRIED)]
    return all(
        any(
            _agree(got, [run[name] for run in each], axis)
            for axis in ((0,) if name in outputs else range(-1, got.ndim))
        )
        for name, got in together.run(inputs).items()
    )


def _drawn(model: ir.Model, shapes: Mapping[str, tuple[int, ...]], draw: int) -> dict[str, Array]:
    """Floats of a few sizes, whole numbers of which more and more are 1."""
    rng, found = np.random.default_rng(draw), {}
    for value in model.graph.inputs:
        if (name := value.name or "") in shapes:
            shape, dtype = (_TRIED, *shapes[name][1:]), spec_of(value).dtype
            floats = rng.standard_normal(shape) * 10.0 ** (draw - 1)
            found[name] = (floats if dtype.kind == "f" else rng.random(shape) < (draw + 1) / 4).astype(dtype)
    return found


def _agree(got: Array, runs: Sequence[Array], axis: int) -> bool:
    """Whether an array is those of single samples along an axis; -1: it is the same for each.

    What tells how many samples there are, a shape or what is computed of one, is let pass.
    """
    if got.dtype.kind in "iu" and got.ndim <= 1 and all(np.array_equal(runs[0], run) for run in runs[1:]):
        return True
    if axis < 0:
        return all(_close(got, run) for run in runs)
    if got.ndim != runs[0].ndim or any(run.shape != runs[0].shape for run in runs):
        return False
    return _close(got, np.concatenate(runs, axis))


def _close(got: Array, expected: Array) -> bool:
    if got.shape != expected.shape:
        return False
    other = got != expected  # not among them: infinities of both
    if got.dtype.kind not in "fiu":
        return not other.any()
    size = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    apart = np.abs(got[other].astype(np.float64) - expected[other]).max(initial=0.0)
    return bool(apart <= _TOLERANCE * max(size, 1e-30))


def _showing(model: ir.Model, names: Collection[str | None]) -> ir.Model:
    """The model with these values among its outputs."""
    model = model.clone()
    shown = {v.name for v in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.name in names and value.name not in shown:
                value.shape = None
                model.graph.outputs.append(value)
    return model


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
