"""`onward inspect --plan`: what the compiled engine makes of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onward.cli.inputs import extents
from onward.cli.verbosity import console
from onward.engine.divided import ENOUGH, MOST
from onward.engine.engines import resolve

if TYPE_CHECKING:
    from onward.engine.divided import Segment
    from onward.engine.plan import Plan

__all__ = ["show_plan"]


def show_plan(
    path: Path,
    model: ir.Model,
    dims: Sequence[str] | None,
    *,
    training: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Print the calls of a model's plan, or of its training step's.

    Args:
        path: what the model is called.
        model: the model.
        dims: options NAME=NUMBER; batches are of 1 sample otherwise.
        training: plan the step with the default losses, Adam, and every weight trained that they depend on.
        threads: of the compiled engine; None: as many as the process may use.
        as_json: print JSON.

    Raises:
        ConfigError: the compiler is missing, an option is wrong, or the model has no default loss.
        UnsupportedError: operators or gradients are missing.
        InputError, ShapeError: the extents do not fit the model.
    """
    from onward.engine.compiled import CompiledEngine
    from onward.verify.inputs import random_inputs

    resolve("compiled")
    bindings: Mapping[str, str] = {}
    if training:
        model, bindings = _step(model)
    inputs = random_inputs(model, batch=1, dims=extents(dims))
    shapes = {name: array.shape for name, array in inputs.items()}
    engine = CompiledEngine(model, bindings, threads)
    plan, segments = engine.plan(shapes), engine.segments(shapes)
    if as_json:
        print(json.dumps(_plain(shapes, engine.threads, plan, segments)))
        return
    print(f"{_listed(shapes)}; {engine.threads} threads")
    title = f"{path}, training step" if training else str(path)
    if plan is not None:
        _show(title, plan)
    elif segments:
        _show_segments(title, segments)
    else:
        print("a shape depends on data: the interpreter runs this model")


def _step(model: ir.Model) -> tuple[ir.Model, Mapping[str, str]]:
    from onward.autodiff import training_step
    from onward.passes import in_float32
    from onward.train import Adam
    from onward.train.preparation import choose_parameters, prepare_model
    from onward.verify import default_losses

    own = prepare_model(model)
    prepared = in_float32(own)
    losses = default_losses(prepared)
    step = training_step(prepared, losses, Adam(), choose_parameters(own, losses, None, ()))
    return step.model, step.bindings


def _plain(
    shapes: Mapping[str, tuple[int, ...]], threads: int, plan: Plan | None, segments: Sequence[Segment]
) -> dict[str, object]:
    head: dict[str, object] = {"inputs": shapes, "threads": threads, "static": plan is not None}
    if plan is not None:
        return {**head, **_calls(plan)}
    return {**head, "segments": [_plain_segment(segment) for segment in segments]} if segments else head


def _plain_segment(segment: Segment) -> dict[str, object]:
    plan = segment.plan()
    return {
        "engine": "interpreter" if segment.engine is None else "compiled",
        "nodes": len(segment.part.nodes),
        "inputs": segment.part.inputs,
        "outputs": segment.part.outputs,
        "shapes": segment.shapes,
        "cuts": [asdict(cut) for cut in segment.cuts],
        **({} if plan is None else _calls(plan)),
    }


def _calls(plan: Plan) -> dict[str, object]:
    calls = [asdict(row) for row in plan.rows]
    return {"arena_bytes": plan.arena_bytes, "seconds": plan.seconds, "calls": calls}


def _show_segments(title: str, segments: Sequence[Segment]) -> None:
    """What there is instead of one plan: each part, and why it ends."""
    print(f"{title}: shapes depend on data, so it runs in {len(segments)} parts")
    for i, segment in enumerate(segments, 1):
        count = len(segment.part.nodes)
        head = f"part {i}: {count} node{'s' * (count != 1)}"
        plan = segment.plan()
        if segment.engine is None:
            print(f"{head}, run by NumPy{'' if segment.cuts else ': too small for a plan'}")
            for cut in segment.cuts:
                print(f"  {cut.node}: {cut.reason}")
        elif plan is not None and segment.shapes is not None:
            print(f"{head}, one plan for {_listed(segment.shapes)}")
            _show(f"part {i}", plan)
        elif segment.shapes is not None:
            print(f"{head}, in parts of its own for {_listed(segment.shapes)}")
        else:
            print(
                f"{head}, whose shapes depend on data: shapes that come {ENOUGH} times get plans, up to "
                f"{MOST} of them; NumPy runs it for others"
            )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _show(title: str, plan: Plan) -> None:
    from rich.table import Table

    rows = plan.rows
    slow = sum(bool(row.reason) for row in rows)
    table = Table(title=title)
    for column in ("kernel", "operators", "flops", "bytes", *(["why not compiled"] if slow else [])):
        numbers = column in ("flops", "bytes")
        table.add_column(column, justify="right" if numbers else "left", overflow="fold", no_wrap=numbers)
    for row in rows:
        cells = [row.kernel, row.operators, *(f"{n:,}" if n else "" for n in (row.flops, row.bytes))]
        table.add_row(*cells, *([row.reason] if slow else []))
    console().print(table)
    print(
        f"{len(rows)} call{'s' * (len(rows) != 1)}, {slow} of them NumPy; "
        f"{sum(row.flops for row in rows):,} operations, "
        f"{sum(row.bytes for row in rows):,} bytes moved, {plan.arena_bytes:,} bytes of working memory"
    )
