"""Checks of a request's arrays against a model's declared inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onward.errors import UnsupportedError
from onward.graph import Array, TensorSpec
from onward_protos.tensors import TensorFormatError, datatype_of
from onward_server.errors import RequestError

__all__ = ["check_inputs", "check_outputs", "check_transferable", "describe"]


def describe(spec: TensorSpec) -> str:
    """A tensor's type in the protocol's words, e.g. `FP32[batch, 3, ?]`."""
    dims = "..." if spec.shape is None else ", ".join("?" if d is None else str(d) for d in spec.shape)
    return f"{datatype_of(spec.dtype)}[{dims}]"


def check_transferable(specs: Sequence[TensorSpec]) -> None:
    """Refuse a model with a tensor type that the protocol cannot carry.

    Raises:
        UnsupportedError: lists every such input and output.
    """
    problems = []
    for spec in specs:
        try:
            datatype_of(spec.dtype)
        except TensorFormatError as error:
            problems.append(f"{spec.name!r}: {error}")
    if problems:
        raise UnsupportedError("; ".join(problems))


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array], texts: str | None = None) -> None:
    """Refuse inputs that are missing or unknown, or whose datatype or shape is not the declared one.

    A symbolic dimension has the same extent wherever its name occurs (ONNX IR, "Static tensor shapes").

    Args:
        specs: what the model takes.
        inputs: by name.
        texts: the name of the input that also takes one text a sample, BYTES [N] or [N, 1].

    Raises:
        RequestError: names the input, what it should be and what it is.
    """
    names = [spec.name for spec in specs]
    for name in inputs:
        if name not in names:
            raise RequestError(f"the model has no input {name!r}; its inputs are {_listed(names)}")
    extents: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in inputs:
            raise RequestError(f"input {spec.name!r} is missing: the model takes {describe(spec)}")
        array = inputs[spec.name]
        found = f"{datatype_of(array.dtype)}{list(array.shape)}"
        if spec.name == texts and array.dtype == object:
            rest = [dim if isinstance(dim, int) else 1 for dim in (spec.shape or ())[1:]]
            fits = array.ndim in (1, 2) and array.shape[1:] in ((), (1,))
            if not fits or not spec.admits((len(array), *rest)):
                takes = f"the model takes {describe(spec)}, or a text for each of its rows, BYTES[N]"
                raise RequestError(f"input {spec.name!r}: shape of {found}; {takes}")
            array = array.reshape(-1)
        elif datatype_of(array.dtype) != datatype_of(spec.dtype):
            also = " or texts, BYTES[N]" if spec.name == texts else ""
            takes = f"the model takes {describe(spec)}{also}"
            raise RequestError(f"input {spec.name!r}: datatype of {found}; {takes}")
        elif not spec.admits(array.shape):
            raise RequestError(f"input {spec.name!r}: shape of {found}; the model takes {describe(spec)}")
        for extent, dim in zip(array.shape, spec.shape or (), strict=False):
            if not isinstance(dim, str):
                continue
            known, owner = extents.setdefault(dim, (extent, spec.name))
            if known != extent:
                raise RequestError(
                    f"input {spec.name!r}: dimension {dim!r} is {extent}, but {known} in input {owner!r}"
                )


def check_outputs(specs: Sequence[TensorSpec], outputs: Sequence[str]) -> None:
    """Refuse requested outputs that the model does not have, or that are named twice.

    Raises:
        RequestError: names the output.
    """
    names = [spec.name for spec in specs]
    for position, name in enumerate(outputs):
        if name not in names:
            raise RequestError(f"the model has no output {name!r}; its outputs are {_listed(names)}")
        if name in outputs[:position]:
            raise RequestError(f"output {name!r} is requested twice")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
