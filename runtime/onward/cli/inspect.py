"""`onward inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from onward.cli.fixing import CONSTANTS, SHAPES, fixed_as_asked
from onward.cli.verbosity import console
from onward.errors import ConfigError, OnwardError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["command"]


@final
@dataclass(frozen=True)
class OperatorSupport:
    """One operator of a model: how often it occurs, and what Onward can do with it.

    `problem` says why a kernel is missing.
    """

    operator: str
    count: int
    kernel: bool
    gradient: bool
    problem: str | None


def command(
    model: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)],
    layers: Annotated[bool, typer.Option("--layers", help="List every node.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the kernels that the compiled engine would run.")
    ] = False,
    training: Annotated[
        bool, typer.Option("--training", help="With --plan: those of the training step.")
    ] = False,
    train: Annotated[
        bool,
        typer.Option("--train", help="List everything that keeps it from being trained; code 1 if anything."),
    ] = False,
    dim: Annotated[
        list[str] | None, typer.Option(help="With --plan, the extent of a dimension: N=4; repeatable.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="With --plan; else all cores.")] = None,
    shapes: Annotated[list[str] | None, typer.Option(help=SHAPES)] = None,
    constants: Annotated[list[str] | None, typer.Option(help=CONSTANTS)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is in a model and what can be done with it.

    Inputs, outputs, operators (which can be run, which differentiated), parameters, cost, what can be
    trained, and where the model comes from.

    \b
    Examples:
      onward inspect model.onnx
      onward inspect model.onnx --layers
      onward inspect model.onnx --json | jq .trainable
      onward inspect model.onnx --train
      onward inspect model.onnx --plan --training --dim N=32
    """
    from onward.model import inspect_model, load, trainable_initializers
    from onward.model.reader import TRAINING_INFO

    if not plan and (training or dim or threads is not None):
        raise ConfigError("--training, --dim and --threads belong to --plan")
    if train and (plan or layers):
        raise ConfigError("--train stands alone: leave out --plan and --layers")
    loaded = fixed_as_asked(load(model), shapes, constants)
    if train:
        _show_obstacles(model, loaded, as_json=as_json)
        return
    if plan:
        from onward.cli.planning import show_plan

        show_plan(model, loaded, dim, training=training, threads=threads, as_json=as_json)
        return
    report = inspect_model(loaded)
    steps = len(loaded.meta.get(TRAINING_INFO, ()))
    trained = _trained_form(loaded)
    support = _support(loaded, trained)
    sizes = {
        name: list(trained.graph.initializers[name].const_value.shape.numpy())  # type: ignore[union-attr]
        for name in trainable_initializers(trained)
    }
    if as_json:
        content = report.as_dict()
        if not layers:
            del content["layers"]
        content |= {"training_info": steps, "support": [asdict(row) for row in support], "trainable": sizes}
        print(json.dumps(content))
        return
    _show(model, report, support, sizes, layers)
    if steps:
        print(
            f"  {steps} training step{'s' if steps > 1 else ''} of its own (training_info): in Python, "
            "onward.train.StoredTraining runs one, Trainer(loss='stored') minimises its loss"
        )


def _trained_form(model: ir.Model) -> ir.Model:
    """The model as a trainer has it, quantised weights in floats; itself where it has no current form."""
    from onward.graph import canonical_model
    from onward.passes import in_floats

    try:
        return in_floats(canonical_model(model), trainable=True)
    except OnwardError:
        return model


def _show_obstacles(path: Path, model: ir.Model, *, as_json: bool) -> None:
    from onward.passes import half_types
    from onward.train.obstacles import training_obstacles

    found = training_obstacles(model)
    halves = [dtype.name.lower() for dtype in half_types(model)]
    if as_json:
        content = {"trains": not found, "half_types": halves, "obstacles": [asdict(o) for o in found]}
        print(json.dumps(content))
    elif not found:
        print(f"{path}: nothing keeps it from being trained")
    else:
        groups: dict[tuple[str, ...], list[str]] = {}
        for o in found:
            where = f"{o.node!r}" + (f" (in {o.place})" if o.place else "") if o.operator else ""
            opset = f" (opset {o.opset})" if o.operator else ""
            groups.setdefault((o.kind, f"{o.operator}{opset}", o.why, o.remedy), []).append(where)
        count = f"{len(found)} obstacle" + ("s" if len(found) > 1 else "")
        print(f"{path}: {count} to training")
        for (kind, operator, why, remedy), nodes in groups.items():
            print(f"  {kind} {operator}: {why}" if operator else f"  {kind}: {why}")
            if operator:
                print(f"    {len(nodes)} node{'s' if len(nodes) > 1 else ''}: {', '.join(nodes)}")
            print(f"    what to do: {remedy}")
    if halves and not as_json:
        names = " and ".join(halves)
        print(f"  {names} tensors: trained with float32 weights, written in {names} again")
    if found:
        raise typer.Exit(1)


def _support(model: ir.Model, trained_form: ir.Model) -> list[OperatorSupport]:
    """What can be done with each operator: kernels at the model's opset, gradients at that of training."""
    from onward.autodiff import OPSET
    from onward.autodiff.gradient_nodes import TRAINING_DOMAIN
    from onward.graph import find, has_body

    nodes: dict[tuple[str, str], int] = {}
    for node in model.graph.all_nodes():
        key = (node.domain, node.op_type)
        nodes[key] = nodes.get(key, 0) + 1
    left = {n.op_type for n in trained_form.graph.all_nodes() if not n.domain}
    rows = []
    for (domain, op_type), count in sorted(nodes.items()):
        opset = model.opset_imports.get(domain, 1)
        problem = None
        name = f"{domain}::{op_type}" if domain else op_type
        written_out = (domain, op_type) == (TRAINING_DOMAIN, "Gradient")
        if has_body(domain, op_type, opset) or written_out:
            rows.append(OperatorSupport(name, count, True, True, None))
            continue
        try:
            find(domain, op_type, opset)
        except OnwardError as error:
            problem = str(error)
        try:
            # training converts the standard's operators to the opset that gradients are written in
            trained = find(domain, op_type, opset if domain else OPSET)
            gone = op_type not in left or domain not in ("", "ai.onnx")
            rewritten = hasattr(trained, "canonical") or op_type in ("QuantizeLinear", "DequantizeLinear")
            gradient = callable(getattr(trained, "gradient", None)) or (gone and rewritten)
        except OnwardError:
            gradient = False
        rows.append(OperatorSupport(name, count, problem is None, gradient, problem))
    return rows


def _show(path: Path, report: Any, support: list[OperatorSupport], sizes: Any, layers: bool) -> None:
    import math

    from rich.table import Table

    screen = console()
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in report.opsets.items())
    print(f"{path}: IR {report.ir_version}, opset {opsets}; by {report.producer or 'unknown'}")
    for note in report.leniencies:
        print(f"  read although the standard does not allow it: {note}")
    for title, values in (("input", report.inputs), ("output", report.outputs)):
        for value in values:
            print(f"  {title} {value.name}: {value.dtype or '?'} {_shape(value.shape)}")
    unknown = f" ({report.layers_of_unknown_cost} of unknown cost)" if report.layers_of_unknown_cost else ""
    print(
        f"  {report.nodes:,} nodes, {report.parameters:,} parameters ({report.parameter_bytes:,} bytes), "
        f"{report.macs:,} multiply-accumulates a sample{unknown}"
    )
    table = Table(title="Operators")
    for title in ("operator", "nodes", "runs", "differentiable"):
        table.add_column(title, justify="right" if title == "nodes" else "left")
    for row in support:
        table.add_row(row.operator, str(row.count), _yes(row.kernel), _yes(row.gradient))
    screen.print(table)
    for row in support:
        if row.problem is not None:
            print(f"  {row.problem}")
    total = sum(math.prod(shape) for shape in sizes.values())
    print(f"trainable: {len(sizes)} of the initialisers, {total:,} numbers")
    for name, shape in sizes.items():
        print(f"  {name} {_shape(shape)}")
    if layers:
        table = Table(title="Nodes")
        for title in ("node", "operator", "output", "parameters", "MACs"):
            table.add_column(title, justify="right" if title in ("parameters", "MACs") else "left")
        for layer in report.layers:
            macs = "" if layer.macs is None else f"{layer.macs:,}"
            table.add_row(
                layer.name, layer.operator, _shape(layer.output_shape), f"{layer.parameters:,}", macs
            )
        screen.print(table)
    for key, text in report.metadata.items():
        print(f"  {key} = {text if len(text) <= 160 else text[:159] + '…'}")


def _shape(shape: Any) -> str:
    return "?" if shape is None else "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
