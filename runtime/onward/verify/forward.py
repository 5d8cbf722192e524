"""Compares a model's forward pass in Onward and in onnxruntime."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from onward.engine import Session
from onward.engine.engines import EngineName
from onward.engine.interpreter import Observer
from onward.errors import ConfigError
from onward.graph import Array
from onward.verify._collect import Collector
from onward.verify.inputs import random_inputs
from onward.verify.locate import first_difference, refuse_random
from onward.verify.report import Difference, Report
from onward.verify.tolerance import Tolerances
from onward.verify.witness import Witness

__all__ = ["compare"]


def compare(
    model: ir.Model | str | Path,
    inputs: Mapping[str, Array] | None = None,
    *,
    seed: int = 0,
    samples: int = 1,
    batch: int = 2,
    dims: Mapping[str, int] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    tolerance: Tolerances = None,
    engine: EngineName = "auto",
) -> Report:
    """Run a model in Onward and in onnxruntime and compare every output.

    Args:
        model: a model or the path of an .onnx file.
        inputs: arrays by input name; inputs that are left out are drawn at random.
        seed: of the random inputs.
        samples: how many times to draw them anew.
        batch: the extent of symbolic first dimensions.
        dims, ranges: see `random_inputs`.
        tolerance: in the place of `TOLERANCES`: one for all floating-point outputs, or by dtype name.
        engine: which of our engines is compared; differences are located with the interpreter.

    Returns:
        The report; where the engines disagree it names the first node that differs.

    Raises:
        InvalidModelError, StorageError: the file cannot be read as a model.
        UnsupportedError: an engine lacks an operator, or nodes are random; all of them are named.
        InputError: an input is of the wrong dtype or shape, or cannot be drawn.
        ShapeError: the inputs' shapes do not fit the operators: give `dims`.
        VerificationError: onnxruntime refuses the model or fails to run it.
    """
    if samples < 1 or batch < 1:
        raise ConfigError(f"samples and batch must be at least 1, got {samples} and {batch}")
    if not isinstance(model, ir.Model):
        from onward.model import load

        model = load(model)
    refuse_random(model)
    session = Session(model, engine=engine)
    witness = Witness(model)
    collector = Collector(tolerance)
    difference: Difference | None = None
    for sample in range(samples):
        feeds = random_inputs(model, seed=seed + sample, batch=batch, dims=dims, ranges=ranges, given=inputs)
        ours = session.run(feeds)
        theirs = witness.run(feeds)
        agree = [collector.add("output", name, sample, ours[name], theirs[name]).ok for name in ours]
        if not all(agree) and (difference is None or difference.cause != "node"):
            found = first_difference(
                model,
                feeds,
                tolerance,
                optimized=theirs,
                step=sample,
                observe=functools.partial(_observe, session, feeds),
            )
            difference = found if difference is None or found.cause == "node" else difference
    return Report(
        subject=model.graph.name or "model",
        witness=witness.version,
        seed=seed,
        runs=samples,
        rows=tuple(collector.rows.values()),
        first_difference=difference,
    )


def _observe(session: Session, feeds: Mapping[str, Array], observer: Observer) -> None:
    session.run(feeds, observer=observer)
