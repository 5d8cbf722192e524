"""Faults planted in the graph that one of two engines runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward.engine import StepSession

__all__ = ["Mutation", "ours_runs", "replaced", "stale", "times"]

Mutation = Callable[[ir.Model], None]


def ours_runs(monkeypatch: pytest.MonkeyPatch, mutate: Mutation) -> None:
    """Let Onward run another graph than onnxruntime."""

    def session(model: ir.Model, *args: Any, **options: Any) -> StepSession:
        model = model.clone()
        mutate(model)
        return StepSession(model, *args, **options)

    monkeypatch.setattr("onward.verify._steps.StepSession", session)


def node_named(model: ir.Model, name: str) -> ir.Node:
    """The node of a name."""
    return next(node for node in model.graph if node.name == name)


def times(name: str, factor: np.ndarray | float, *, plus: np.ndarray | float = 0.0) -> Mutation:
    """A node's first output y becomes y · factor + plus."""

    def mutate(model: ir.Model) -> None:
        node = node_named(model, name)
        value = node.outputs[0]
        made = value
        for op_type, operand in (("Mul", factor), ("Add", plus)):
            if np.all(operand == (1.0 if op_type == "Mul" else 0.0)):
                continue
            array = ir.tensor(np.asarray(operand, np.float32), name=f"planted_{op_type}")
            constant = ir.Value(name=array.name, type=value.type, shape=array.shape, const_value=array)
            model.graph.register_initializer(constant)
            new = ir.Node("", op_type, [made, constant], name=f"planted_{op_type}")
            new.outputs[0].type, new.outputs[0].shape = value.type, value.shape
            model.graph.insert_after(made.producer(), new)
            for user, index in made.uses():
                if user is not new:
                    user.replace_input_with(index, new.outputs[0])
            outputs = model.graph.outputs
            outputs[:] = [new.outputs[0] if v is made else v for v in outputs]
            made = new.outputs[0]
        kept, value.name = value.name, "before_the_fault"
        made.name = kept

    return mutate


def replaced(name: str, op_type: str) -> Mutation:
    """A node becomes another operator."""

    def mutate(model: ir.Model) -> None:
        node = node_named(model, name)
        node.op_type = op_type

    return mutate


def stale(name: str, weight: str) -> Mutation:
    """A node reads a weight's first value for ever."""

    def mutate(model: ir.Model) -> None:
        old = model.graph.initializers[weight]
        array = ir.tensor(old.const_value.numpy(), name="stale")
        copy = ir.Value(name="stale", type=old.type, shape=old.shape, const_value=array)
        model.graph.register_initializer(copy)
        node = node_named(model, name)
        node.replace_input_with(list(node.inputs).index(old), copy)

    return mutate
