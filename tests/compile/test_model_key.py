"""Which plans a model's key tells apart, and which it does not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward.compile import model_key
from onward.compile.codegen.target import LANES, host_target
from onward.compile.model_key import ModelKey, compiler_version
from onward.compile.options import CompileOptions
from onward.graph import Builder


def model(
    *,
    alpha: float = 0.1,
    op_type: str = "LeakyRelu",
    weight: float = 1.0,
    slope: float = 2.0,
    shape: Collection[int] = (-1, 2),
    name: str = "y",
    dim: str = "N",
) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="keyed")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, (dim, 4))
    w = g.initializer("w", np.full((4, 8), weight, np.float32))
    attributes: dict[str, Any] = {"alpha": alpha} if op_type == "LeakyRelu" else {}
    y = g.Mul(getattr(g, op_type)(g.MatMul(x, w), **attributes), g.initializer("slope", np.float32([slope])))
    g.output(g.Reshape(y, g.initializer("shape", np.array(shape))), name)
    return ir.Model(graph, ir_version=10)


def key(
    m: ir.Model | None = None,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    bindings: Mapping[str, str] | None = None,
    swapped: Collection[str] = (),
    lanes: int | None = None,
    threads: int = 2,
    winograd: int = 2,
) -> str:
    found = ModelKey(m or model(), bindings or {}).key(
        shapes or {"x": (3, 4)}, swapped, host_target(lanes), threads, CompileOptions(winograd)
    )
    assert found is not None
    assert len(found) == 64
    return found


def test_equal_models_share_plans() -> None:
    assert key() == key(model())
    other = model()
    other.metadata_props["author"] = "somebody"
    assert key(other) == key()


def test_contents_of_weights_do_not_count() -> None:
    assert key(model(weight=3.0)) == key()
    assert key(model(slope=3.0), swapped=["slope"]) == key(swapped=["slope"])


@pytest.mark.parametrize(
    "changed",
    [
        {"alpha": 0.2},
        {"op_type": "Relu"},
        {"slope": 3.0},
        {"shape": (-1, 4)},
        {"name": "z"},
        {"dim": "M"},
    ],
)
def test_what_plans_follow_from_counts(changed: Mapping[str, Any]) -> None:
    assert key(model(**changed)) != key()


def test_shapes_threads_targets_options_bindings_and_what_is_swapped_count() -> None:
    keys = [
        key(),
        key(shapes={"x": (4, 4)}),
        key(threads=1),
        key(winograd=4),
        key(swapped=["slope"]),
        key(swapped=["w"]),
        key(bindings={"w": "y"}),
        *(key(lanes=n) for n in LANES if n < host_target().lanes),
    ]
    assert len(set(keys)) == len(keys)


def test_the_order_of_operands_counts() -> None:
    def difference(first: str, second: str) -> ir.Model:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="difference")
        g = Builder(graph)
        values: dict[str, Any] = {n: g.input(n, ir.DataType.FLOAT, ("N",)) for n in ("a", "b")}
        g.output(g.Sub(values[first], values[second]), "y")
        return ir.Model(graph, ir_version=10)

    shapes = {"a": (3,), "b": (3,)}
    assert key(difference("a", "b"), shapes=shapes) != key(difference("b", "a"), shapes=shapes)


def with_body(tensor: ir.TensorProtocol) -> str | None:
    """The key of a model with a body that holds a tensor."""
    inner = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="inner"))
    held = ir.Value(name="w", type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]
    inner.graph.register_initializer(held)
    inner.output(inner.Neg(held), "y")
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="outer"))
    x = g.input("x", ir.DataType.BOOL, ())
    g.graph.append(ir.node("If", [x], {"then_branch": inner.graph}, name="either"))
    return ModelKey(ir.Model(g.graph, ir_version=10), {}).key({"x": ()}, (), host_target(), 1)


def test_contents_of_bodies_count(tmp_path: Path) -> None:
    one, two = (with_body(ir.tensor(np.float32([n, 3.0]))) for n in (1, 2))
    assert one is not None
    assert one == with_body(ir.tensor(np.float32([1, 3.0])))
    assert one != two
    (tmp_path / "w").write_bytes(bytes(8))
    elsewhere = ir.ExternalTensor(
        "w", 0, 8, ir.DataType.FLOAT, shape=ir.Shape([2]), name="w", base_dir=tmp_path
    )
    assert with_body(elsewhere) is None


def test_a_model_with_strings_has_no_key() -> None:
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="texts"))
    text = ir.StringTensor([b"a"], shape=ir.Shape([1]), name="text")
    value = ir.Value(
        name="text", type=ir.TensorType(ir.DataType.STRING), shape=ir.Shape([1]), const_value=text
    )
    g.graph.register_initializer(value)
    g.output(g.Identity(value), "y")
    assert ModelKey(ir.Model(g.graph, ir_version=10), {}).key({}, (), host_target(), 1) is None


def test_the_version_follows_the_compilers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "onward"
    for name in model_key._SOURCES:
        (package / name).mkdir(parents=True)
    monkeypatch.setattr(model_key, "__file__", str(package / "compile" / "model_key.py"))
    rule = package / "compile" / "rule.py"
    versions = set()
    for text in ("a = 1\n", "a = 2\n"):
        rule.write_text(text)
        versions.add(compiler_version.__wrapped__())
    rule.rename(package / "compile" / "renamed.py")
    versions.add(compiler_version.__wrapped__())
    assert len(versions) == 3
