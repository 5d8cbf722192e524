"""What lowering may put into a plan: nothing that is different in the next process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import planned

from onward.compile.context import Context
from onward.compile.tensors import Buffer
from onward.graph import Builder


@pytest.mark.parametrize("number", [1 << 40, 0x7F00_1234_5678])
def test_an_address_in_an_argument_block_is_refused(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="doubled")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    g.output(g.Add(x, x), "y")
    model, inputs = ir.Model(graph, ir_version=10), {"x": np.ones((3, 4), np.float32)}
    assert planned(model, inputs).run(inputs)["y"].tolist() == [[2.0] * 4] * 3
    call: Callable[..., None] = Context.call

    def with_address(self: Context, kernel: object, slots: dict[str, object], **options: object) -> None:
        call(self, kernel, slots | {"batch": number}, **options)

    monkeypatch.setattr(Context, "call", with_address)
    with pytest.raises(AssertionError, match="another one in the next process"):
        planned(model, inputs)


@pytest.mark.parametrize(("slot", "what"), [("x0", 64), ("batch", Buffer(64))])
def test_what_a_kernel_does_not_declare_is_refused(
    slot: str, what: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="doubled")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    g.output(g.Add(x, x), "y")
    call: Callable[..., None] = Context.call

    def with_other(self: Context, kernel: object, slots: dict[str, object], **options: object) -> None:
        call(self, kernel, slots | {slot: what}, **options)

    monkeypatch.setattr(Context, "call", with_other)
    with pytest.raises(AssertionError, match=f"slot {slot} of element is not"):
        planned(ir.Model(graph, ir_version=10), {"x": np.ones((3, 4), np.float32)})
