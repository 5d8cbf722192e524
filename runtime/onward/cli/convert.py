"""`onward convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

import typer

from onward.cli.fixing import CONSTANTS, SHAPES, fixed_as_asked
from onward.cli.verbosity import console, note
from onward.errors import (
    ConfigError,
    DataError,
    InputError,
    StorageError,
    UnsupportedError,
    VerificationError,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from onward.data import Dataset
    from onward.engine import Session
    from onward.graph import Array
    from onward.runs import ConversionReport, EvaluationData
    from onward.runs.conversion import Conversion, Form

    Batches = list[dict[str, Array]]

__all__ = ["command"]

_BATCH = 64
_WITNESSED = 16
"""Samples on which the new file is compared with onnxruntime."""


def command(
    source: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)],
    to: Annotated[
        Literal["float16", "bfloat16"] | None, typer.Option("--to", help="Tensors in 16-bit floats.")
    ] = None,
    weights: Annotated[
        Literal["int8", "int4"] | None, typer.Option(help="Weights of products and tables in integers.")
    ] = None,
    quantize: Annotated[
        Literal["static", "dynamic"] | None,
        typer.Option(help="Products in 8-bit integers: scales from calibration data, or from each run."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Of the default domain; by default kept.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="An operator or a node to leave as it is; repeatable.")
    ] = None,
    keep_io: Annotated[
        bool, typer.Option("--keep-io", help="With --to: inputs and outputs stay float32.")
    ] = False,
    block: Annotated[
        int | None, typer.Option(help="With --weights: elements that share a scale: 16, 32, 64 or 128.")
    ] = None,
    calibration: Annotated[
        Literal["minmax", "percentile", "entropy"], typer.Option(help="With --quantize static.")
    ] = "minmax",
    percentile: Annotated[float, typer.Option(help="With --calibration percentile.")] = 99.99,
    activations: Annotated[
        Literal["uint8", "int8"], typer.Option(help="With --quantize static: their type.")
    ] = "uint8",
    data: Annotated[
        str | None, typer.Option(help="The data set; by default the one the model was trained on.")
    ] = None,
    part: Annotated[
        Literal["test", "validation", "train", "all"],
        typer.Option(help="Which part both files are measured on; calibration takes the training part."),
    ] = "test",
    split: Annotated[str | None, typer.Option(help="Fractions; by default the model's.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="By default the model's.")] = None,
    target: Annotated[str | None, typer.Option(help="The column or array to predict.")] = None,
    task: Annotated[str | None, typer.Option(help="classification or regression.")] = None,
    text: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    image_size: Annotated[int | None, typer.Option(help="The side of an image.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for colour images.")] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="In place of --data: an .npz file with arrays by input name.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="To calibrate on, and to compare outputs on; figures are of the part.")
    ] = 512,
    tolerance: Annotated[
        float | None, typer.Option(help="How far outputs may be apart: |new - old| / |old|, 2-norms.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="How far accuracy (or R2) may fall, as a fraction.", show_default="0.01"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write a file that is worse, too.")] = False,
    shapes: Annotated[list[str] | None, typer.Option(help=SHAPES)] = None,
    constants: Annotated[list[str] | None, typer.Option(help=CONSTANTS)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make another file of a model: opset, 16-bit floats or integers; compared with the original.

    The report says how far outputs are apart, what both files score on data, and their sizes. A file that is
    worse than --tolerance or --max-drop allow is not written, and the exit code is 1.

    \b
    Examples:
      onward convert model.onnx old.onnx --opset 13
      onward convert model.onnx half.onnx --to float16 --keep-io --keep Softmax
      onward convert model.onnx small.onnx --weights int4 --block 32
      onward convert model.onnx fast.onnx --quantize static --data digits --calibration entropy
      onward convert model.onnx fast.onnx --quantize dynamic --inputs batch.npz --tolerance 0.05
    """
    from onward.cli.options import data_overrides
    from onward.engine import Session
    from onward.model import load
    from onward.runs.conversion import Conversion
    from onward.verify.exporting import write_checked

    conversion = Conversion(
        _form(to, weights, quantize),
        opset=opset,
        keep=tuple(keep or ()),
        keep_io=keep_io,
        block=block,
        method=calibration,
        percentile=percentile,
        activations=activations,
    )
    if data is not None and inputs is not None:
        raise ConfigError("--data and --inputs are two sources of the same: give one of them")
    model = fixed_as_asked(load(source), shapes, constants)
    session = Session(model)
    overrides = data_overrides(data, split, split_seed, target, task, text, image_size, channels)
    given = _Data.read(model, session, overrides, inputs, part, samples)
    converted, report, checked = _convert(model, session, conversion, given, source, destination)
    problems = report.problems(tolerance, max_drop)
    if as_json:
        print(json.dumps({"written": not problems or force, "problems": problems, **report.to_dict()}))
    else:
        _show(report, source)
    if problems and not force:
        raise VerificationError(f"{destination} is not written: {'; '.join(problems)}; --force writes it")
    for problem in problems:
        note(f"{problem}; written all the same")
    write_checked(converted, destination, witness=checked)


def _form(to: str | None, weights: str | None, quantize: str | None) -> Form:
    chosen: list[Any] = [form for form in (to, weights, quantize) if form is not None]
    if len(chosen) > 1:
        raise ConfigError(f"--to, --weights and --quantize exclude one another, given {' and '.join(chosen)}")
    return chosen[0] if chosen else "opset"


@final
class _Data:
    """What a conversion is calibrated and measured on."""

    def __init__(
        self,
        calibration: Batches,
        compared: Batches,
        read: EvaluationData | None,
        chosen: Dataset | None,
        part: Any,
    ) -> None:
        self.calibration, self.compared = calibration, compared
        self._read, self._chosen, self.part = read, chosen, part

    @classmethod
    def read(
        cls,
        model: ir.Model,
        session: Session,
        overrides: dict[str, Any],
        inputs: Path | None,
        part: Literal["test", "validation", "train", "all"],
        samples: int,
    ) -> _Data:
        from onward.cli.inputs import read_arrays
        from onward.model import read_provenance
        from onward.runs import EvaluationData
        from onward.runs.preparation import feeds_of, stored_data
        from onward.verify import random_inputs

        if inputs is not None:
            arrays = read_arrays(inputs)
            if list(arrays) == [""] and len(session.inputs) == 1:
                arrays = {session.inputs[0].name: arrays[""]}
            if unknown := [s.name for s in session.inputs if s.name not in arrays]:
                have = ", ".join(name for name in arrays if name) or "one unnamed array"
                raise InputError(f"{inputs}: no array {unknown[0]!r} for the model's input; there is {have}")
            arrays = {spec.name: arrays[spec.name] for spec in session.inputs}
            batches = _batches(arrays, samples)
            return cls(batches, batches, None, None, None)
        named = overrides["spec"] is not None
        if named or "spec" in stored_data(read_provenance(model)):
            try:
                read = EvaluationData.read(model, session.inputs, overrides)
                chosen = read.part(part)
                fitted = read.part("all" if part == "all" else "train")
            except (StorageError, DataError, ConfigError) as error:
                if named:
                    raise
                note(f"the data that the model was trained on cannot be read: {error}")
            else:
                for text in read.notes:
                    note(text)
                fitted, chosen = (read.prepared.given(d) for d in (fitted, chosen))
                feeds = [_batches(feeds_of(d, session.inputs), samples) for d in (fitted, chosen)]
                measured = chosen if chosen.targets is not None else None
                return cls(feeds[0], feeds[1], read, measured, part)
        note("outputs are compared on random inputs: --data or --inputs give real ones")
        return cls([], [random_inputs(model, seed=i) for i in range(4)], None, None, None)

    def figures(self, session: Session) -> dict[str, float]:
        """What a file scores; empty without targets."""
        from onward.runs.measures import outputs_of

        if self._read is None or self._chosen is None:
            return {}
        outputs = outputs_of(session, self._chosen, 256)
        return dict(self._read.measure(outputs, self._chosen).figures)


def _batches(arrays: dict[str, Array], samples: int) -> Batches:
    """Arrays in batches along their first axes; whole where those differ, as inputs of a graph's may."""
    extents = {len(a) if a.ndim else 0 for a in arrays.values()}
    if len(extents) != 1 or 0 in extents:
        return [arrays]
    (count,) = extents
    count = min(count, samples)
    starts = range(0, count, _BATCH)
    return [{n: a[i : min(i + _BATCH, count)] for n, a in arrays.items()} for i in starts]


def _convert(
    model: ir.Model,
    session: Session,
    conversion: Conversion,
    given: _Data,
    source: Path,
    destination: Path,
) -> tuple[ir.Model, ConversionReport, bool]:
    """The new model, its report, and whether onnxruntime has run it."""
    from onward.engine import Session
    from onward.runs import ConversionReport
    from onward.runs.conversion import describe
    from onward.verify import compare_models
    from onward.verify.exporting import agreement

    converted = conversion.apply(model, given.calibration)
    new = Session(converted)
    before = given.figures(session)
    after = given.figures(new) if before else {}
    describe(converted, conversion, after, given.part or "")
    outputs = compare_models(model, converted, given.compared)
    try:
        types = {spec.name: spec.dtype for spec in new.inputs}
        feeds = {n: a.astype(types[n]) for n, a in _few(given.compared[0]).items()}
        found = agreement(converted, destination, feeds)
        witness, checked = f"{found.witness}: {found.verdict}", True
        if found.verdict == "differ" and found.first_difference is not None:
            witness = f"{found.witness}: {found.first_difference}"
    except UnsupportedError as error:
        witness, checked = f"not compared: {error}", False
    sizes = _bytes_of(source), _size(converted)
    counted = sum(max((len(a) for a in batch.values() if a.ndim), default=1) for batch in given.compared)
    report = ConversionReport(conversion, outputs, counted, sizes, before, after, given.part, witness)
    return converted, report, checked


def _few(batch: dict[str, Array]) -> dict[str, Array]:
    alike = len({len(a) if a.ndim else 0 for a in batch.values()}) == 1
    return {n: a[:_WITNESSED] for n, a in batch.items()} if alike else batch


def _bytes_of(path: Path) -> int:
    """A file's bytes and those of its external data."""
    import onnx

    proto = onnx.load(path, load_external_data=False)
    places = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    return path.stat().st_size + sum((path.parent / place).stat().st_size for place in places)


def _size(model: ir.Model) -> int:
    from onward.model import to_bytes

    weights = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    return len(to_bytes(model)) if weights < 1_900_000_000 else weights


def _show(report: ConversionReport, source: Path) -> None:
    from rich.table import Table

    screen = console()
    conversion = report.conversion
    form = f"at opset {conversion.opset}" if conversion.form == "opset" else f"as {conversion.form}"
    table = Table(title=f"{source} {form}")
    for title in ("", "before", "after", "change"):
        table.add_column(title, justify="right" if title else "left")
    old, new = report.sizes
    table.add_row("bytes", f"{old:,}", f"{new:,}", f"x {new / old:.3f}")
    for name, value in report.before.items():
        other = report.after[name]
        table.add_row(f"{name} ({report.part})", f"{value:.4f}", f"{other:.4f}", f"{other - value:+.4f}")
    screen.print(table)
    apart = Table(title=f"outputs, {report.samples:,} samples")
    for title in ("output", "elements", "largest difference", "relative error"):
        apart.add_column(title, justify="left" if title == "output" else "right")
    for row in report.outputs:
        apart.add_row(row.name, f"{row.elements:,}", f"{row.max_abs:.3g}", f"{row.error:.3g}")
    screen.print(apart)
    screen.print(report.witness, soft_wrap=True, markup=False)
