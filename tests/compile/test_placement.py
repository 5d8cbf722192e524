"""Where values are: conversions once each way, windows on memory, state that is replaced in place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.compile.units import floats, rng_array, scene_of

from onward.compile.context import Layout
from onward.compile.items import Call
from onward.compile.tensors import Place
from onward.graph import Builder


def _convolved(g: Builder) -> ir.Value:
    return g.Conv(floats(g, "x", 2, 3, 9, 9), floats(g, "w", 4, 3, 1, 1))


def test_a_value_is_converted_once_to_each_layout() -> None:
    scene = scene_of(_convolved)
    x = scene.unit.program.inputs["x"]
    imagined = scene.context.layout(x, Layout.IMAGE)
    assert not scene.emitted.calls
    image = scene.context.image(x)
    assert (image.strides, image.image) == (imagined.strides, imagined.image)
    assert scene.context.image(x) is image
    assert [c.kernel.name.split()[0] for c in scene.emitted.calls if isinstance(c, Call)] == ["copy"]
    assert scene.context.plain(x).buffer.place is Place.INPUT
    assert len(scene.emitted.calls) == 1


def test_inputs_weights_and_state_have_places_before_anything_runs() -> None:
    def build(g: Builder) -> ir.Value:
        w = g.const(rng_array(5, 4))
        return g.MatMul(floats(g, "x", 3, 5), w)

    scene = scene_of(build)
    assert scene.context.plain(scene.unit.program.inputs["x"]).buffer.name == "x"
    assert scene.context.is_placed(scene.unit.program.inputs["x"])
    (weight,) = scene.unit.program.weights.values()
    assert scene.context.plain(weight).buffer.place is Place.FIXED
    assert scene.context.is_constant(scene.context.plain(weight))
    assert not scene.context.is_placed(scene.unit.program.outputs["y0"])


def _momentum(late_reader: bool):  # type: ignore[no-untyped-def]
    def build(g: Builder) -> list[ir.Value]:
        p = g.input("p", ir.DataType.FLOAT, (4,))
        p.const_value = ir.tensor(np.zeros(4, np.float32), name="p")
        g.graph.initializers["p"] = p
        new = g.Sub(p, floats(g, "d", 4))
        return [new, g.Softmax(g.Add(p, new))] if late_reader else [new]

    return build


def test_state_is_replaced_in_place_where_nobody_reads_it_later() -> None:
    fixed = {"p": np.zeros(4, np.float32)}
    for late, replaced in ((False, True), (True, False)):
        scene = scene_of(_momentum(late), fixed, {"p": "y0"})
        state, new = scene.unit.program.state["p"], scene.unit.program.outputs["y0"]
        assert (scene.placement.targets.get(new) is state) is replaced
