"""One file made into another: other opset, 16-bit floats, or integers, and how far the two are apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final

import onnx
import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Array
from onward.model import read_provenance, upgrade, write_provenance
from onward.passes import (
    fold_normalization,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    tensors_to_calibrate,
    to_half,
    to_inference,
)
from onward.passes.to_inference import MAX_OPSET
from onward.verify.calibration import CalibrationMethod, calibrate
from onward.verify.conversion import ConvertedTensor

__all__ = ["Conversion", "ConversionReport", "Form", "describe"]

Form = Literal["opset", "float16", "bfloat16", "int8", "int4", "static", "dynamic"]

_TOLERANCES: Mapping[str, float] = {
    "opset": 1e-4,
    "float16": 0.01,
    "bfloat16": 0.05,
    "int8": 0.05,
    "int4": 0.25,
    "static": 0.15,
    "dynamic": 0.1,
}
"""How far outputs may be apart, as ‖after − before‖ / ‖before‖, where nothing else is asked for."""

_MAX_DROP = 0.01
_MAIN_FIGURES = ("accuracy", "subset_accuracy", "r2")
_METADATA = "onward.conversion"
_OLDEST = 7
_AXES_OPSET = 13
"""The first in which scales are by axis."""

_INT8_OPSET = 20
"""From 21 on, onnxruntime 1.32 makes int8 activations uint8, then refuses the `output_dtype` it wrote."""


@final
@dataclass(frozen=True, slots=True)
class Conversion:
    """What a model is to become.

    Attributes:
        form: another `opset` alone; `float16` or `bfloat16`; weights of products and tables in `int8` or
            `int4`; `static` quantisation by calibration; `dynamic` quantisation.
        opset: of the default domain; None: kept, or raised as far as the form needs.
        keep: operators, or names of nodes, that stay as they are.
        keep_io: of 16-bit forms, whether inputs and outputs stay float32.
        block: of weights, elements that share a scale.
        method, percentile: of calibration, see `onward.verify.calibrate`.
        activations: of static quantisation, `uint8` or `int8`.

    Raises:
        ConfigError: the form is unknown, an opset is out of range, or a field does not go with the form.
    """

    form: Form
    opset: int | None = None
    keep: tuple[str, ...] = ()
    keep_io: bool = False
    block: int | None = None
    method: CalibrationMethod = "minmax"
    percentile: float = 99.99
    activations: Literal["uint8", "int8"] = "uint8"

    def __post_init__(self) -> None:
        if self.form not in _TOLERANCES:
            raise ConfigError(f"a model is converted to {', '.join(_TOLERANCES)}, not {self.form!r}")
        newest = onnx.defs.onnx_opset_version() if self.form == "opset" else MAX_OPSET
        if self.form == "opset" and self.opset is None:
            raise ConfigError("what is the model to become? give an opset, or another form")
        if self.opset is not None and not _OLDEST <= self.opset <= newest:
            kind = "" if self.form == "opset" else f" of a file with {self.form}"
            raise ConfigError(f"the opset{kind} is {_OLDEST} to {newest}, not {self.opset}")
        for given, what, forms in (
            (self.keep_io, "keep_io", ("float16", "bfloat16")),
            (self.block is not None, "block", ("int8", "int4")),
            (self.method != "minmax", "a method of calibration", ("static",)),
            (self.activations != "uint8", "activations", ("static",)),
            (bool(self.keep), "keep", tuple(f for f in _TOLERANCES if f != "opset")),
        ):
            if given and self.form not in forms:
                raise ConfigError(f"{what} goes with {' or '.join(forms)}, not with {self.form}")

    @property
    def default_tolerance(self) -> float:
        """What a `ConversionReport` is held to where no figure on data is."""
        return _TOLERANCES[self.form]

    def apply(self, model: ir.Model, batches: Sequence[Mapping[str, Array]] = ()) -> ir.Model:
        """The converted model; other forms than `opset` are inference forms of opset 21 or lower.

        Args:
            model: it is not changed.
            batches: what the model is calibrated on: arrays by input name. Static quantisation needs them;
                float16 keeps in float32 what leaves its range on them.

        Raises:
            ConfigError: nothing in the model can be converted, or there are no batches where they are needed.
            UnsupportedError: an operator cannot be taken to the opset; all of those are named.
            DataError, InputError, ShapeError: the batches do not fit.
        """
        if self.form == "opset":
            assert self.opset is not None
            return upgrade(model, self.opset)
        model = to_inference(model)
        target = self.opset
        if self.form == "static" and target is None:
            newest = _INT8_OPSET if self.activations == "int8" else MAX_OPSET
            target = min(newest, max(_AXES_OPSET, model.graph.opset_imports.get("", 0)))
        if target is not None and target != model.graph.opset_imports.get(""):
            model = upgrade(model, target)
        result = self._rewritten(model, batches)
        reached = result.graph.opset_imports.get("", 0)
        if self.opset is not None and reached != self.opset:
            raise ConfigError(f"{self.form} needs opset {reached} at least, not {self.opset}")
        return result

    def _rewritten(self, model: ir.Model, batches: Sequence[Mapping[str, Array]]) -> ir.Model:
        match self.form:
            case "float16" | "bfloat16":
                to = ir.DataType.FLOAT16 if self.form == "float16" else ir.DataType.BFLOAT16
                ranges = calibrate(model, batches) if batches else None
                return to_half(model, to, keep=self.keep, keep_io=self.keep_io, ranges=ranges)
            case "int8":
                return quantize_weights(model, 8, block=self.block, keep=self.keep)
            case "int4":
                return quantize_weights(model, 4, block=self.block, keep=self.keep)
            case "dynamic":
                return quantize_dynamic(model, keep=self.keep)
            case _:
                if not batches:
                    raise ConfigError("static quantisation needs data to calibrate on")
                folded = fold_normalization(model)
                tensors = tensors_to_calibrate(folded, keep=self.keep)
                ranges = calibrate(folded, batches, tensors, method=self.method, percentile=self.percentile)
                to = ir.DataType.UINT8 if self.activations == "uint8" else ir.DataType.INT8
                return quantize_static(folded, ranges, activations=to, keep=self.keep)


@final
@dataclass(frozen=True, slots=True)
class ConversionReport:
    """A converted model beside the original.

    Attributes:
        conversion: what was done.
        outputs: how far they are apart.
        samples: how many were compared.
        sizes: bytes before and after.
        before, after: figures of both on data; empty without targets.
        part: of the data that the figures are of.
        witness: what onnxruntime says of the new file.
    """

    conversion: Conversion
    outputs: tuple[ConvertedTensor, ...]
    samples: int
    sizes: tuple[int, int]
    before: Mapping[str, float]
    after: Mapping[str, float]
    part: str | None
    witness: str

    def problems(self, tolerance: float | None = None, max_drop: float | None = None) -> list[str]:
        """Why the new file is worse than is asked for; empty where it is good.

        Args:
            tolerance: for each output's error; None: the form's own where there are no figures, else none.
            max_drop: for the main figure (accuracy, or R² of a regression), as a fraction; None: 0.01.

        Raises:
            ConfigError: a limit is negative.
        """
        for name, limit in (("tolerance", tolerance), ("max_drop", max_drop)):
            if limit is not None and not limit >= 0:
                raise ConfigError(f"{name} must be at least 0, got {limit}")
        found = []
        main = next((n for n in _MAIN_FIGURES if n in self.before and n in self.after), None)
        if tolerance is None and main is None:
            tolerance = self.conversion.default_tolerance
        for row in self.outputs:
            if tolerance is not None and not row.error <= tolerance:
                found.append(f"output {row.name!r} is off by {row.error:.3g}, more than {tolerance:g}")
        if main is not None:
            drop, allowed = self.before[main] - self.after[main], _MAX_DROP if max_drop is None else max_drop
            if not drop <= allowed:
                found.append(
                    f"{main} falls from {self.before[main]:.4f} to {self.after[main]:.4f}, "
                    f"by more than {allowed:g}"
                )
        elif max_drop is not None:
            found.append("there are no data with targets that a drop could be measured on")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; infinite errors are the string `inf`."""
        result = asdict(self)
        result["outputs"] = [
            {k: str(v) if isinstance(v, float) and abs(v) == float("inf") else v for k, v in row.items()}
            for row in result["outputs"]
        ]
        result["before"], result["after"] = dict(self.before), dict(self.after)
        return result


def describe(model: ir.Model, conversion: Conversion, figures: Mapping[str, float], part: str) -> None:
    """Say in a converted model's metadata what it is; figures of the original are not its own any more."""
    options = {k: v for k, v in asdict(conversion).items() if v not in (None, (), False)}
    model.metadata_props[_METADATA] = json.dumps(options, sort_keys=True)
    provenance = read_provenance(model)
    if provenance is not None and conversion.form != "opset":
        own = {f"{part}_{name}": value for name, value in figures.items()}
        kept = {name: own[name] for name in provenance.metrics if name in own}
        write_provenance(model, replace(provenance, metrics=kept))
