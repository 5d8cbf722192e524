"""Adapters beside products: 0 at first, the same merged as beside, under every form that a weight has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onward import export, nn
from onward.engine import Session
from onward.errors import ConfigError, InvalidModelError, StorageError
from onward.graph import Builder
from onward.model import load, read_adapter, save, write_adapter
from onward.passes import LoRA, adapters_of, add_lora, merge_lora, open_adapters

RNG = np.random.default_rng(0)
X = {"x": RNG.standard_normal((2, 5, 6)).astype(np.float32), "rows": np.array([0, 3], np.int64)}


def products() -> ir.Model:
    """MatMul of three axes, Gemm with a factor, a Transpose before, and a weight that Gather uses too."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="products")
    g = Builder(graph)

    def weight(name: str, *shape: int) -> ir.Value:
        return g.initializer(name, RNG.standard_normal(shape).astype(np.float32))

    x = g.input("x", ir.DataType.FLOAT, ("N", 5, 6))
    rows = g.input("rows", ir.DataType.INT64, (2,))
    tied = weight("tied", 6, 6)
    y = g.Add(g.MatMul(x, tied), g.MatMul(x, g.Transpose(tied, perm=[1, 0])))
    y = g.Reshape(g.MatMul(y, weight("plain", 6, 4)), [-1, 4])
    other = weight("gemm", 3, 4)
    z = g.Add(g.Gemm(y, other, weight("bias", 3), transB=1, alpha=0.5), g.Gemm(y, other, transB=1))
    g.output(z, "z")
    g.output(g.Gather(tied, rows), "embedded")
    return ir.Model(graph, ir_version=10)


def filled(model: ir.Model) -> dict[str, np.ndarray]:
    """Puts something into the adapters."""
    found = {}
    for adapter in adapters_of(model):
        for name in (adapter.a, adapter.b):
            value = model.graph.initializers[name]
            assert value.const_value is not None
            found[name] = RNG.standard_normal(value.const_value.shape.numpy()).astype(np.float32)
            value.const_value = ir.tensor(found[name], name=name)
    return found


def run(model: ir.Model) -> dict[str, np.ndarray]:
    return Session(model, engine="interpreter").run(X)


def test_adapters_change_nothing_at_first_and_the_same_merged_as_beside() -> None:
    model = products()
    before = run(model)
    adapted = add_lora(model, LoRA(rank=2, alpha=6))
    assert {(a.weight, a.scale) for a in adapters_of(adapted)} == {("tied", 3), ("plain", 3), ("gemm", 3)}
    assert len(adapters_of(adapted)) == 4  # tied is there as it is and transposed
    np.testing.assert_array_equal(run(adapted)["z"], before["z"])
    filled(adapted)
    beside, merged = run(adapted), merge_lora(adapted)
    assert np.abs(beside["z"] - before["z"]).max() > 1
    after = run(merged)
    np.testing.assert_allclose(after["z"], beside["z"], rtol=2e-5, atol=2e-4)
    np.testing.assert_array_equal(after["embedded"], before["embedded"])
    assert [n.op_type for n in merged.graph].count("MatMul") == 3
    assert [v.name for v in merged.graph.outputs] == ["z", "embedded"]
    assert not adapters_of(merged)
    assert {"plain", "gemm", "tied"} <= set(merged.graph.initializers)
    assert not [name for name in merged.graph.initializers if "lora" in name]
    assert model.graph.initializers["plain"] is not merged.graph.initializers["plain"]


def test_the_change_is_of_the_rank_that_was_asked_for() -> None:
    adapted = add_lora(products(), LoRA(rank=2, targets=("plain",)))
    matrices = filled(adapted)
    old, new = (m.graph.initializers["plain"].const_value.numpy() for m in (adapted, merge_lora(adapted)))
    assert np.linalg.matrix_rank(new - old, tol=1e-4) == 2
    np.testing.assert_allclose(
        new - old, matrices["plain.lora_a"] @ matrices["plain.lora_b"], rtol=1e-4, atol=1e-5
    )


def test_the_projections_of_attention_are_targets() -> None:
    network = nn.Sequential([nn.SelfAttention(2), nn.Flatten(), nn.Dense(3)], input_shape=(5, 6))
    adapted = add_lora(network.model, LoRA(rank=2, targets=("*query_weight", "*value_weight")))
    assert [a.weight.rpartition(".")[2] for a in adapters_of(adapted)] == ["query_weight", "value_weight"]


def test_onnxruntime_takes_the_adapter_file(tmp_path: Path) -> None:
    adapted = add_lora(products(), LoRA(rank=2))
    base, beside = run(adapted)["z"], None
    matrices = filled(adapted)
    beside = run(adapted)["z"]
    assert export(open_adapters(adapted), tmp_path / "open.onnx", inputs=X) is not None
    write_adapter(tmp_path / "change.onnx_adapter", matrices)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / "open.onnx", options)
    adapter, choice = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(str(tmp_path / "change.onnx_adapter"))
    choice.add_active_adapter(adapter)
    np.testing.assert_allclose(session.run(["z"], X)[0], base, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(session.run(["z"], X, choice)[0], beside, rtol=1e-4, atol=1e-3)
    read = read_adapter(tmp_path / "change.onnx_adapter")
    merged = merge_lora(load(tmp_path / "open.onnx"), read)
    np.testing.assert_allclose(run(merged)["z"], beside, rtol=1e-4, atol=1e-3)
    with pytest.raises(ConfigError, match="no adapter matrix 'other'"):
        merge_lora(load(tmp_path / "open.onnx"), {**read, "other": read["plain.lora_a"]})
    with pytest.raises(ConfigError, match="has shape"):
        merge_lora(load(tmp_path / "open.onnx"), {**read, "plain.lora_a": np.zeros((6, 3), np.float32)})
    del read["plain.lora_b"]
    with pytest.raises(ConfigError, match=r"'plain\.lora_b' is missing"):
        merge_lora(load(tmp_path / "open.onnx"), read)


def test_files_that_are_no_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        read_adapter(tmp_path / "none")
    (tmp_path / "text").write_text("text" * 100)
    with pytest.raises(InvalidModelError, match="not an adapter file"):
        read_adapter(tmp_path / "text")
    model = products()
    model.metadata_props["onward.lora"] = '[{"weight": "plain"}]'
    save(model, tmp_path / "bad.onnx")
    with pytest.raises(InvalidModelError, match=r"onward\.lora"):
        merge_lora(load(tmp_path / "bad.onnx"))


def test_refusals_say_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no weight of Gemm or MatMul matches 'conv\*'; there are gemm"):
        add_lora(products(), LoRA(targets=("conv*",)))
    with pytest.raises(ConfigError, match="trained as they are"):
        add_lora(products(), LoRA(targets=("plain",)), leave=["plain"])
    with pytest.raises(ConfigError, match="has adapters already"):
        add_lora(add_lora(products(), LoRA()), LoRA())
    with pytest.raises(ConfigError, match="rank must be at least 1"):
        LoRA(rank=0)
    with pytest.raises(ConfigError, match="alpha must be above 0"):
        LoRA(alpha=-1.0)
