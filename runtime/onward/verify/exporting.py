"""Exports a model for inference: clean, compared with onnxruntime, and only then written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onward.data import Preparation
from onward.errors import ConfigError, InvalidModelError, OnwardError, UnsupportedError, VerificationError
from onward.graph import Array
from onward.model import Provenance, infer_shapes, save, to_bytes, write_provenance
from onward.passes.float32 import HALVES, half_types, in_float32
from onward.passes.functions import with_functions
from onward.passes.preparation import prepend_preparation
from onward.passes.to_inference import to_inference
from onward.verify.forward import compare
from onward.verify.report import Report
from onward.verify.tolerance import Tolerances
from onward.verify.witness import Witness

__all__ = ["agreement", "export", "write_checked"]

_IN_MEMORY = 1_900_000_000

_ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def export(
    model: ir.Model,
    path: str | Path,
    *,
    weights: Mapping[str, Array] | None = None,
    provenance: Provenance | None = None,
    preparation: Preparation | None = None,
    inputs: Mapping[str, Array] | None = None,
    seed: int = 0,
    batch: int = 2,
    dims: Mapping[str, int] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    tolerance: Tolerances = None,
    check: bool = True,
) -> Report | None:
    """Write a model's inference form, once onnxruntime agrees with Onward on it.

    Whatever fails, a file that was at `path` before is as it was.

    Args:
        model: the model, in inference or training form; it is not changed.
        path: the .onnx file to create or replace.
        weights: arrays by initializer name that replace the model's: parameters and running statistics.
        provenance: stored in the file's metadata.
        preparation: becomes part of the graph, which then takes inputs as they are read. Written to the
            metadata where `provenance` says nothing of a preparation.
        inputs, seed, batch, dims, ranges, tolerance: see `compare`.
        check: whether to compare with onnxruntime. The file passes `onnx.checker` and loads in onnxruntime
            either way. Of a bfloat16 model that onnxruntime has no kernels for, the same graph with the same
            weights in float32 is compared, and is what has to load.

    Returns:
        The report of the comparison; None without it.

    Raises:
        ConfigError: `weights` names no initializer of the model, or differs from it in dtype or shape.
        UnsupportedError: the model has no inference form at an opset that current runtimes load.
        VerificationError: the engines disagree, or onnxruntime refuses the model. Those of a quantised model
            do where a node differs on the same inputs: steps of the quantisation may fall either way.
        InvalidModelError: the result does not pass `onnx.checker`.
        StorageError: the file cannot be written.
    """
    clean = to_inference(_with_weights(model, weights or {}))
    if preparation is not None:
        clean = prepend_preparation(clean, preparation)
        if provenance is not None and provenance.preparation is None:
            provenance = replace(provenance, preparation={**preparation.to_json(), "inside": True})
    if provenance is not None:
        write_provenance(clean, provenance)
    report: Report | None = None
    loads = True
    if check:
        options = {"seed": seed, "batch": batch, "dims": dims, "ranges": ranges, "tolerance": tolerance}
        try:
            report = agreement(clean, path, inputs, **options)
        except UnsupportedError:
            if ir.DataType.BFLOAT16 not in half_types(clean):
                raise
            report, loads = _agreement_in_float32(clean, path, inputs, options), False
    write_checked(clean, path, witness=loads)
    return report


def _agreement_in_float32(
    model: ir.Model, path: str | Path, inputs: Mapping[str, Array] | None, options: Mapping[str, Any]
) -> Report:
    """The comparison of the same graph with the same numbers in float32."""
    dtypes = {v.name: v.dtype for v in model.graph.inputs}
    given = {
        name: np.asarray(a).astype(np.float32) if dtypes.get(name) in HALVES else a
        for name, a in (inputs or {}).items()
    }
    wide = in_float32(model)
    wide.graph.name = f"{model.graph.name or 'model'} in float32"
    return agreement(wide, path, given or None, **options)


def agreement(
    model: ir.Model, path: str | Path, inputs: Mapping[str, Array] | None = None, **options: Any
) -> Report:
    """Compare a model that is to be written with onnxruntime; `options` as `compare` takes them.

    Raises:
        VerificationError: the engines disagree by more than rounding to the model's own types explains.
        UnsupportedError: onnxruntime has no kernel for an operator or type.
    """
    try:
        report = compare(model, inputs, **options)
        if not _parted_by_steps(model, report):
            report.raise_if_failed()
    except VerificationError as error:
        raise VerificationError(f"{path} is not written: {error}") from None
    return report


def write_checked(model: ir.Model, path: str | Path, *, witness: bool = True) -> None:
    """Write a model in inference form once `onnx.checker`, and onnxruntime unless told otherwise, take it."""
    model = with_functions(model)
    _check_file(model, path, witness=witness)
    save(model, path)


def _parted_by_steps(model: ir.Model, report: Report) -> bool:
    """Whether the engines part on a model of coarse numbers by steps of those alone.

    A number that is within rounding of the middle between two integers, or two 16-bit floats, becomes either.
    Then every node agrees when it is given the same inputs, and what differs is what later nodes make of a
    step.
    What onnxruntime's optimizations do to dequantised weights and 16-bit tensors is its own choice of
    rounding, too: it multiplies by 4-bit weights in 8 bits.
    """
    found = report.first_difference
    if found is None or found.cause not in ("accumulation", "optimization"):
        return False
    coarse = any(n.op_type in _ROUNDING and n.domain == "" for n in model.graph.all_nodes())
    return coarse or any(v.dtype in HALVES for n in model.graph.all_nodes() for v in n.outputs)


def _with_weights(model: ir.Model, weights: Mapping[str, Array]) -> ir.Model:
    model = model.clone()
    for name, array in weights.items():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise ConfigError(f"weight {name!r} is not an initializer of the model")
        old = value.const_value
        dtype, shape = old.numpy().dtype, tuple(old.shape.numpy())
        if array.dtype != dtype or array.shape != shape:
            raise ConfigError(
                f"weight {name!r}: the model has {dtype}{list(shape)}, given {array.dtype}{list(array.shape)}"
            )
        # the caller goes on training: the exported copy must not follow
        value.const_value = ir.tensor(np.array(array), dtype=old.dtype, name=name)
    return model


def _check_file(model: ir.Model, path: str | Path, *, witness: bool) -> None:
    """Check exactly the bytes that will be saved."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    try:
        infer_shapes(model.clone())
        if size <= _IN_MEMORY:
            data = to_bytes(model)
            onnx.checker.check_model(data)
            if witness:
                Witness(data)
            return
        with tempfile.TemporaryDirectory(prefix="onward-export-") as folder:
            file = Path(folder) / "model.onnx"
            save(model, file)
            onnx.checker.check_model(str(file))
            if witness:
                Witness(file)
    except OnwardError as error:
        raise type(error)(f"{path} is not written: {error}") from None
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InvalidModelError(f"{path} is not written: onnx.checker refuses the model: {reason}") from None
