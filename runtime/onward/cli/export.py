"""`onward export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onward.cli.fixing import CONSTANTS, SHAPES, fixed_as_asked
from onward.errors import ConfigError, VerificationError

__all__ = ["command"]


def command(
    source: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Take weights and running statistics from this checkpoint.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Merge this .onnx_adapter file into the weights.")
    ] = None,
    opset: Annotated[int | None, typer.Option(min=7, max=21, help="Of the file; by default kept.")] = None,
    ir_version: Annotated[int, typer.Option("--ir", min=4, max=10, help="Of the file.")] = 10,
    check: Annotated[bool, typer.Option(help="Compare with onnxruntime before writing.")] = True,
    shapes: Annotated[list[str] | None, typer.Option(help=SHAPES)] = None,
    constants: Annotated[list[str] | None, typer.Option(help=CONSTANTS)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a clean inference model that onnxruntime agrees with.

    Dropout goes, batch normalisation uses its running statistics, and what only training needs is removed.
    Names and metadata stay. A file that was there before survives any failure.

    \b
    Examples:
      onward export training_form.onnx model.onnx
      onward export start.onnx model.onnx --checkpoint run.ckpt
      onward export base.onnx merged.onnx --adapter base.onnx_adapter
      onward export old.onnx new.onnx --opset 21
    """
    from onward.model import load, read_adapter, save, upgrade
    from onward.passes import merge_lora
    from onward.train.checkpoint import read_checkpoint
    from onward.verify import compare, export

    model = fixed_as_asked(load(source), shapes, constants)
    weights = {}
    if checkpoint is not None:
        state = read_checkpoint(checkpoint).weights
        weights = {name: array for name, array in state.items() if name in model.graph.initializers}
        if not weights:
            raise ConfigError(f"checkpoint {checkpoint} has no weight of {source}: it is of another model")
    if adapter is not None:
        model = merge_lora(model, read_adapter(adapter))
    if opset is not None and model.graph.opset_imports.get("") != opset:
        model = upgrade(model, opset)
    report = export(model, destination, weights=weights, check=check)
    if ir_version != 10:
        written = load(destination)
        written.ir_version = ir_version
        if check and not (again := compare(written)).passed:
            raise VerificationError(f"{destination}: at IR version {ir_version}: {again}")
        save(written, destination)
    if as_json:
        compared = None if report is None else report.to_dict()
        print(json.dumps({"file": str(destination), "compared": compared}))
    else:
        print(f"{destination}: written{f'; {report}' if report is not None else ', not compared'}")
