"""Files made to hurt whoever opens them, and files of people whose exporter is odd: bytes by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
MOST, LEAST = 2**63 - 1, -(2**63)

Files = dict[str, bytes]


def tensor(name: str, content: Any, dtype: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(content, dtype), name)


def raw(name: str, dtype: int, dims: list[int], data: bytes = b"", **fields: Any) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, data_type=dtype, dims=dims, raw_data=data, **fields)


def model(
    nodes: list[onnx.NodeProto],
    *tensors: onnx.TensorProto,
    x: Any = (10,),
    y: Any = None,
    y_type: int = FLOAT,
    opset: int = 17,
    ir_version: int = 8,
    functions: Any = (),
    opsets: Any = None,
) -> onnx.ModelProto:
    inputs = [] if x is None else [helper.make_tensor_value_info("x", FLOAT, x)]
    outputs = [helper.make_tensor_value_info("y", y_type, y)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(tensors))
    imports = opsets if opsets is not None else [helper.make_opsetid("", opset)]
    imports = [*imports, *([helper.make_opsetid("own", 1)] if functions else [])]
    made = onnx.ModelProto(ir_version=ir_version, graph=graph, opset_import=imports)
    made.functions.extend(functions)
    return made


def node(op_type: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node that is called "n" where it makes "y", else by what it makes; "_" is an absent operand."""
    names = ["" if name == "_" else name for name in inputs.split()]
    made = ["" if name == "_" else name for name in outputs.split()]
    called = "n" if "y" in made else f"n_{made[0] if made else ''}"
    return helper.make_node(op_type, names, made, name=called, **attributes)


def body(nodes: list[onnx.NodeProto], inputs: Any, outputs: Any, tensors: Any = ()) -> onnx.GraphProto:
    given = [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs]
    made = [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs]
    return helper.make_graph(nodes, "body", given, made, list(tensors))


# ---------------------------------------------------------------------------------------------------- nesting


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    made = bytearray()
    while value >= 128:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def nested_ifs(depth: int) -> bytes:
    inner = body([node("Identity", "x", "r")], [], [("r", FLOAT, None)]).SerializeToString()
    other = field(5, field(1, b"else_branch") + field(6, inner) + varint(20 << 3) + b"\x05")
    for _ in range(depth):
        then = field(5, field(1, b"then_branch") + field(6, inner) + varint(20 << 3) + b"\x05")
        step = field(1, b"c") + field(2, b"r") + field(3, b"i") + field(4, b"If") + then + other
        inner = field(1, step) + field(2, b"b") + field(12, field(1, b"r"))
    condition = field(5, tensor("c", True, np.bool_).SerializeToString())
    x = field(11, helper.make_tensor_value_info("x", FLOAT, [10]).SerializeToString())
    graph = inner + condition + x
    return varint(1 << 3) + b"\x08" + field(7, graph) + field(8, varint(2 << 3) + b"\x11")


def nested_types(depth: int) -> bytes:
    kind = helper.make_tensor_type_proto(FLOAT, [1]).SerializeToString()
    for _ in range(depth):
        kind = field(4, field(1, kind))
    made = model([node("Identity", "x")])
    value = field(11, field(1, b"q") + field(2, kind))
    return bytes(made.SerializeToString() + field(7, value))


def calls(count: int, each: int, last: str = "Relu") -> onnx.ModelProto:
    """Functions each of which calls the next so many times."""
    functions = []
    for i in range(count):
        op_type, domain = (f"F{i + 1}", "own") if i + 1 < count else (last, "")
        names = ["a", *(f"t{k}" for k in range(each - 1)), "b"]
        steps = [
            helper.make_node(op_type, [p], [q], name=f"c{k}", domain=domain)
            for k, (p, q) in enumerate(itertools.pairwise(names))
        ]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], steps, imports))
    return model([helper.make_node("F0", ["x"], ["y"], name="n", domain="own")], functions=functions)


def function(
    steps: list[onnx.NodeProto], inputs: str = "a", outputs: str = "b", attributes: Any = (), **more: Any
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function(
        "own", "F", inputs.split(), outputs.split(), steps, imports, list(attributes), **more
    )


def called(
    made: onnx.FunctionProto, inputs: str = "x", outputs: str = "y", **attributes: Any
) -> onnx.ModelProto:
    call = helper.make_node("F", inputs.split(), outputs.split(), name="n", domain="own", **attributes)
    return model([call], functions=[made])


def nesting() -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    for depth in (5, 20, 40, 10_000):
        yield f"if in if {depth}", nested_ifs(depth)
    yield "sequence of sequence 10000", nested_types(10_000)
    yield "sequence of sequence 30", nested_types(30)
    yield "functions in a line 10000", calls(10_000, 1)
    yield "functions in a line 100", calls(100, 1)
    yield "functions doubling 60", calls(60, 2)
    yield "functions doubling 16", calls(16, 2)
    yield (
        "chain 10000",
        model(
            [
                helper.make_node("Relu", ["x" if i == 0 else f"v{i}"], ["y" if i == 9_999 else f"v{i + 1}"])
                for i in range(10_000)
            ]
        ),
    )
    yield "function calls itself", called(function([helper.make_node("F", ["a"], ["b"], domain="own")]))
    relu = [node("Relu", "a", "b")]
    yield "function two operands", called(function(relu), "x x")
    yield "function no operand", called(function(relu), "")
    yield "function two results", called(function(relu), "x", "y z")
    yield "function unknown attribute", called(function(relu), alpha=1.0)
    leaky = node("LeakyRelu", "a", "b")
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    yield "function attribute missing", called(function([leaky], attributes=["slope"]))
    yield "function attribute of another type", called(function([leaky], attributes=["slope"]), slope="steep")
    yield "function attribute given", called(function([leaky], attributes=["slope"]), slope=0.5)
    yield "reference outside of a function", _reference()
    yield "function without nodes", called(function([], "a", "a"))
    yield "function output undefined", called(function(relu, "a", "c"))
    yield (
        "function calls nothing known",
        called(function([helper.make_node("G", ["a"], ["b"], domain="own")])),
    )
    yield "cycle of two", model([node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b")])
    yield "cycle of one", model([node("Add", "x y", "y")])
    yield "not sorted", model([node("Relu", "a"), node("Abs", "x", "a")])
    overload = function(relu)
    yield (
        "function twice",
        model([helper.make_node("F", ["x"], ["y"], domain="own")], functions=[overload, overload]),
    )


def _reference() -> onnx.ModelProto:
    leaky = node("LeakyRelu", "x")
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    return model([leaky])


# ------------------------------------------------------------------------------------------------------ bytes


def damaged() -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    sound = model([node("Add", "x w")], tensor("w", np.ones(10), np.float32)).SerializeToString()
    yield "empty", b""
    yield "one byte", b"\x08"
    yield "zeros", bytes(4096)
    yield "noise", np.random.default_rng(0).bytes(4096)
    for cut in (1, 10, len(sound) // 2, len(sound) - 1):
        yield f"cut off at {cut}", sound[:cut]
    yield "twice", sound + sound
    yield "length beyond the end", field(7, b"")[:-1] + b"\xff\xff\xff\x7f" + sound
    yield "groups", b"\x0b" * 100_000
    yield "doc of 20 MB", sound + field(6, b"a" * 20_000_000)
    yield "million inputs", sound + field(7, field(11, field(1, b"x")) * 1_000_000)
    yield "million metadata", sound + field(14, field(1, b"k") + field(2, b"v")) * 1_000_000
    yield "million imports", sound + field(8, varint(2 << 3) + b"\x11") * 1_000_000
    yield "million empty nodes", sound + field(7, field(1, b"") * 1_000_000)
    yield (
        "million attributes",
        model([node("Relu", "x")]).SerializeToString()
        + field(7, field(1, field(5, field(1, b"a")) * 1_000_000)),
    )
    yield "million dims", sound + field(7, field(5, field(1, b"\x01" * 1_000_000) + field(8, b"t")))
    yield "name not UTF-8", sound.replace(b"\x0a\x01x", b"\x0a\x01\xff")
    yield "json", b'{"graph": 1}'
    yield "no graph", onnx.ModelProto(ir_version=8).SerializeToString()


# ---------------------------------------------------------------------------------------------------- tensors


def tensors() -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    def add(w: onnx.TensorProto) -> onnx.ModelProto:
        return model([node("Add", "x w")], w)

    yield "dims promise more", add(raw("w", FLOAT, [10], b"\0" * 36))
    yield "dims promise far more", add(raw("w", FLOAT, [2**40], b"\0" * 40))
    yield "dims negative", add(raw("w", FLOAT, [-1], b"\0" * 40))
    yield "dims least", add(raw("w", FLOAT, [LEAST], b""))
    yield "dims product overflows", add(raw("w", FLOAT, [2**32, 2**32], b""))
    yield "dims product overflows to 10", add(raw("w", FLOAT, [2**63 - 1, 2**63 - 1, 10], b"\0" * 40))
    yield "dims zero and most", add(raw("w", FLOAT, [0, MOST], b""))
    yield "dims of 70 axes", add(raw("w", FLOAT, [1] * 70, b"\0" * 4))
    yield "more data than dims", add(raw("w", FLOAT, [10], b"\0" * 44))
    yield (
        "two kinds of data",
        add(onnx.TensorProto(name="w", data_type=FLOAT, dims=[1], raw_data=b"\0" * 4, float_data=[1.0])),
    )
    yield "type undefined", add(raw("w", 0, [10], b"\0" * 40))
    yield "type 99", add(raw("w", 99, [10], b"\0" * 40))
    yield "type negative", add(raw("w", -1, [10], b"\0" * 40))
    yield (
        "int32_data beyond int8",
        add(onnx.TensorProto(name="w", data_type=TensorProto.INT8, dims=[1], int32_data=[4000])),
    )
    yield (
        "segment",
        add(
            onnx.TensorProto(
                name="w", data_type=FLOAT, dims=[1], raw_data=b"\0" * 4, segment={"begin": 0, "end": 5}
            )
        ),
    )
    yield "unused of wrong size", model([node("Relu", "x")], raw("w", FLOAT, [10], b"\0" * 4))
    yield "string as float", model([node("Relu", "w")], raw("w", TensorProto.STRING, [1], b"abc"))
    strings = onnx.TensorProto(
        name="w", data_type=TensorProto.STRING, dims=[2], string_data=[b"\xff\xfe", b"a"]
    )
    yield "strings not UTF-8", model([node("Identity", "w")], strings, y_type=TensorProto.STRING)
    yield "strings not UTF-8 compared", model([node("Equal", "w w")], strings, y_type=BOOL, opset=19)
    yield "bool of 7", model([node("Where", "w x x")], raw("w", BOOL, [10], b"\x07" * 10))
    yield (
        "same name twice",
        model([node("Add", "x w")], tensor("w", 1.0, np.float32), tensor("w", 2.0, np.float32)),
    )
    yield "name of an input", model([node("Relu", "x")], tensor("x", np.ones(10), np.float32))
    yield "name of a result", model([node("Relu", "x")], tensor("y", np.ones(10), np.float32))
    yield "result twice", model([node("Relu", "x"), node("Abs", "x")])
    yield "empty name", model([node("Relu", "x")], tensor("", 1.0, np.float32))
    for name, index, dims in (
        ("in range", [0, 3], [10]),
        ("beyond", [0, 10], [10]),
        ("negative", [-1, 3], [10]),
        ("twice", [3, 3], [10]),
        ("descending", [3, 0], [10]),
        ("most", [0, MOST], [10]),
        ("too few", [0], [10]),
        ("rank 2", [[0, 0], [0, 3]], [10]),
        ("of an enormous shape", [0, 3], [2**40]),
        ("of a large shape", [0, 3], [2**34]),
        ("of an overflowing shape", [0, 3], [2**62, 4]),
        ("of a negative shape", [0, 3], [-1]),
    ):
        made = model([node("Add", "x w")])
        sparse = made.graph.sparse_initializer.add(dims=dims)
        sparse.values.CopyFrom(tensor("w", [1.0, 2.0], np.float32))
        sparse.indices.CopyFrom(tensor("w_i", index))
        yield f"sparse {name}", made
    for name, entries in EXTERNAL.items():
        w = onnx.TensorProto(name="w", data_type=FLOAT, dims=[10], data_location=TensorProto.EXTERNAL)
        for key, value in entries.items():
            w.external_data.add(key=key, value=value)
        yield f"external {name}", add(w)


EXTERNAL = {
    "outside": {"location": "../../../../etc/passwd"},
    "absolute": {"location": "/etc/passwd"},
    "missing": {"location": "nowhere.bin"},
    "nowhere": {},
    "empty location": {"location": ""},
    "itself": {"location": "."},
    "device": {"location": "/dev/zero"},
    "too short": {"location": "short.bin"},
    "offset beyond": {"location": "long.bin", "offset": "1000"},
    "offset most": {"location": "long.bin", "offset": str(MOST)},
    "offset negative": {"location": "long.bin", "offset": "-4"},
    "offset no number": {"location": "long.bin", "offset": "four"},
    "length too short": {"location": "long.bin", "length": "4"},
    "length too long": {"location": "long.bin", "length": "80"},
    "length negative": {"location": "long.bin", "length": "-1"},
    "length of 10000 digits": {"location": "long.bin", "length": "9" * 10_000},
    "null in location": {"location": "long.bin\0"},
    "found": {"location": "long.bin"},
}


# -------------------------------------------------------------------------------------------------- operators


def sizes() -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    """Operators that are asked for more than there is."""
    many = 2**40
    image = (1, 1, 4, 4)
    for big in (2**40, MOST, -5, LEAST):
        yield f"ConstantOfShape {big}", model([node("ConstantOfShape", "s")], tensor("s", [big]))
        yield f"ConstantOfShape {big} twice", model([node("ConstantOfShape", "s")], tensor("s", [big, big]))
        yield f"Expand {big}", model([node("Expand", "x s")], tensor("s", [big, 10]))
        yield f"Tile {big}", model([node("Tile", "x s")], tensor("s", [big]))
        yield f"Pad {big}", model([node("Pad", "x s")], tensor("s", [big, 0]))
        yield f"Pad {big} both", model([node("Pad", "x s")], tensor("s", [big, big]))
        yield f"Reshape {big}", model([node("Reshape", "x s")], tensor("s", [big]))
        yield f"Resize {big}", model([node("Resize", "x _ _ s")], tensor("s", [big]))
        yield f"Resize scale {big}", model([node("Resize", "x _ s")], tensor("s", [big], np.float32))
        yield (
            f"OneHot {big}",
            model(
                [node("OneHot", "i s v")],
                tensor("s", big),
                tensor("i", [0, 1]),
                tensor("v", [0, 1], np.float32),
            ),
        )
        yield (
            f"Range to {big}",
            model(
                [node("Range", "a b c", "r"), node("Cast", "r", to=FLOAT)],
                tensor("a", 0),
                tensor("b", big),
                tensor("c", 1),
            ),
        )
        yield f"EyeLike {big}", model([node("EyeLike", "e", k=big)], tensor("e", np.ones((3, 3)), np.float32))
        yield f"TopK {big}", model([node("TopK", "x k", "y i")], tensor("k", [big]))
        yield f"Gather {big}", model([node("Gather", "x i")], tensor("i", [big]))
        yield (
            f"ScatterElements {big}",
            model([node("ScatterElements", "x i u")], tensor("i", [big]), tensor("u", [1.0], np.float32)),
        )
        yield f"GatherND {big}", model([node("GatherND", "x i")], tensor("i", [[big]]))
        yield (
            f"Trilu {big}",
            model([node("Trilu", "m k")], tensor("m", np.ones((3, 3)), np.float32), tensor("k", big)),
        )
        yield f"Unsqueeze {big}", model([node("Unsqueeze", "x a")], tensor("a", [big]))
        yield f"Squeeze {big}", model([node("Squeeze", "x a")], tensor("a", [big]))
        yield f"ReduceSum axes {big}", model([node("ReduceSum", "x a")], tensor("a", [big]))
        yield f"CumSum axis {big}", model([node("CumSum", "x a")], tensor("a", big))
        yield f"Split {big}", model([node("Split", "x s", "y z")], tensor("s", [big, 5]))
        yield f"DepthToSpace {big}", model([node("DepthToSpace", "x", blocksize=big)], x=image)
        yield f"Shape start {big}", model([node("Shape", "x", start=big)], y_type=INT64)
        yield f"Concat axis {big}", model([node("Concat", "x x", axis=big)])
        yield f"Softmax axis {big}", model([node("Softmax", "x", axis=big)])
        yield f"Transpose {big}", model([node("Transpose", "x", perm=[big])])
        yield f"Flatten {big}", model([node("Flatten", "x", axis=big)])
        yield f"RandomNormal {big}", model([node("RandomNormal", "", shape=[big])])
        yield f"Cast to {big}", model([node("Cast", "x", to=big)])
        yield f"CenterCropPad {big}", model([node("CenterCropPad", "x s")], tensor("s", [big]), opset=18)
        yield f"Loop trips {big}", loop(trips=big, cond=True, body_cond=True)
        yield f"HannWindow {big}", model([node("HannWindow", "s")], tensor("s", big))
        yield f"DFT length {big}", model([node("DFT", "x s", axis=1)], tensor("s", big), x=(1, 4, 1))
        for name, attributes in (
            ("kernel", {"kernel_shape": [big, 2]}),
            ("strides", {"kernel_shape": [2, 2], "strides": [big, 1]}),
            ("pads", {"kernel_shape": [2, 2], "pads": [big, 0, 0, 0]}),
            ("pads at both ends", {"kernel_shape": [2, 2], "pads": [big, 0, big, 0]}),
            ("dilations", {"kernel_shape": [2, 2], "dilations": [big, 1]}),
        ):
            for pool in ("MaxPool", "AveragePool", "LpPool"):
                if pool == "MaxPool" or name != "dilations":
                    yield f"{pool} {name} {big}", model([node(pool, "x", **attributes)], x=image)
            w = tensor("w", np.ones((1, 1, 2, 2)), np.float32)
            yield f"Conv {name} {big}", model([node("Conv", "x w", **attributes)], w, x=image)
            yield (
                f"ConvTranspose {name} {big}",
                model([node("ConvTranspose", "x w", **attributes)], w, x=image),
            )
        yield (
            f"Conv group {big}",
            model([node("Conv", "x w", group=big)], tensor("w", np.ones((1, 1, 2, 2)), np.float32), x=image),
        )
        yield (
            f"ConvTranspose output_shape {big}",
            model(
                [node("ConvTranspose", "x w", output_shape=[big, 4])],
                tensor("w", np.ones((1, 1, 2, 2)), np.float32),
                x=image,
            ),
        )
        yield (
            f"ConvTranspose output_padding {big}",
            model(
                [node("ConvTranspose", "x w", output_padding=[big, 0])],
                tensor("w", np.ones((1, 1, 2, 2)), np.float32),
                x=image,
            ),
        )
        yield (
            f"LSTM hidden_size {big}",
            model(
                [node("LSTM", "x w r", "z y", hidden_size=big)],
                tensor("w", np.ones((1, 8, 3)), np.float32),
                tensor("r", np.ones((1, 8, 2)), np.float32),
                x=(4, 1, 3),
            ),
        )
        yield (
            f"NonMaxSuppression {big}",
            model(
                [node("NonMaxSuppression", "b s m", "i"), node("Cast", "i", to=FLOAT)],
                tensor("b", np.zeros((1, 3, 4)), np.float32),
                tensor("s", np.zeros((1, 1, 3)), np.float32),
                tensor("m", [big]),
            ),
        )
        yield (
            f"MaxUnpool {big}",
            model(
                [node("MaxUnpool", "x i", kernel_shape=[2, 2])],
                tensor("i", np.full((1, 1, 4, 4), big)),
                x=image,
            ),
        )
        yield (
            f"MaxUnpool shape {big}",
            model(
                [node("MaxUnpool", "x i s", kernel_shape=[2, 2])],
                tensor("i", np.zeros((1, 1, 4, 4))),
                tensor("s", [1, 1, big, 8]),
                x=image,
            ),
        )
        yield (
            f"Col2Im {big}",
            model(
                [node("Col2Im", "x s b")], tensor("s", [big, 5]), tensor("b", [1, 5]), x=(1, 5, 5), opset=18
            ),
        )
        yield f"LRN {big}", model([node("LRN", "x", size=big)], x=image)
        yield (
            f"AffineGrid {big}",
            model(
                [node("AffineGrid", "t s")],
                tensor("t", np.ones((1, 2, 3)), np.float32),
                tensor("s", [1, 1, big, big]),
                opset=20,
            ),
        )
        yield (
            f"Multinomial {big}",
            model([node("Multinomial", "x", sample_size=big)], x=(1, 4), y_type=TensorProto.INT32),
        )
    yield (
        "Range by 0",
        model(
            [node("Range", "a b c", "r"), node("Cast", "r", to=FLOAT)],
            tensor("a", 0),
            tensor("b", 5),
            tensor("c", 0),
        ),
    )
    yield (
        "Range by NaN",
        model(
            [node("Range", "a b c")],
            *(tensor(n, v, np.float32) for n, v in (("a", 0), ("b", 5), ("c", np.nan))),
        ),
    )
    yield (
        "Range to infinity",
        model(
            [node("Range", "a b c")],
            *(tensor(n, v, np.float32) for n, v in (("a", 0), ("b", np.inf), ("c", 1))),
        ),
    )
    yield (
        "Range extremes",
        model(
            [node("Range", "a b c", "r"), node("Cast", "r", to=FLOAT)],
            tensor("a", LEAST),
            tensor("b", MOST),
            tensor("c", MOST),
        ),
    )
    yield "Resize scale NaN", model([node("Resize", "x _ s")], tensor("s", [np.nan], np.float32))
    yield "Resize scale infinite", model([node("Resize", "x _ s")], tensor("s", [np.inf], np.float32))
    yield "Resize scale 0", model([node("Resize", "x _ s")], tensor("s", [0], np.float32))
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        least = np.iinfo(dtype).min
        for op_type in ("Div", "Mod"):
            for by in (-1, 0):
                yield (
                    f"{op_type} {np.dtype(dtype).name} least by {by}",
                    model(
                        [node(op_type, "a b")],
                        tensor("a", [least, 7], dtype),
                        tensor("b", [by, by], dtype),
                        y_type=kind,
                    ),
                )
    yield (
        "Pow of integers",
        model([node("Pow", "a b")], tensor("a", [2, 0, -1]), tensor("b", [-1, -1, LEAST]), y_type=INT64),
    )
    yield (
        "BitShift by 64",
        model(
            [node("BitShift", "a b", direction="LEFT")],
            tensor("a", [1], np.uint64),
            tensor("b", [64], np.uint64),
            y_type=TensorProto.UINT64,
        ),
    )
    yield (
        "Einsum of many letters",
        model(
            [node("Einsum", "x " * 20, equation=",".join("abcdefghijklmnopqrst") + "->abcdefghijklmnopqrst")]
        ),
    )
    yield "Einsum nonsense", model([node("Einsum", "x", equation="->->(")])
    yield "Einsum long", model([node("Einsum", "x", equation="i" * 1_000_000)])
    yield (
        "StringSplit",
        model(
            [node("StringSplit", "s", "y c", delimiter="")],
            tensor("s", ["a b"], object),
            y_type=TensorProto.STRING,
            opset=20,
        ),
    )
    yield (
        "RegexFullMatch backtracking",
        model(
            [node("RegexFullMatch", "s", pattern="(a|aa)+b")],
            tensor("s", ["a" * 5000 + "c"], object),
            y_type=BOOL,
            opset=20,
        ),
    )
    yield (
        "RegexFullMatch nonsense",
        model(
            [node("RegexFullMatch", "s", pattern="(((")], tensor("s", ["a"], object), y_type=BOOL, opset=20
        ),
    )
    yield (
        "RegexFullMatch repeats",
        model(
            [node("RegexFullMatch", "s", pattern="((a{1000}){1000}){1000}")],
            tensor("s", ["a"], object),
            y_type=BOOL,
            opset=20,
        ),
    )
    yield (
        "TfIdfVectorizer",
        model(
            [
                node(
                    "TfIdfVectorizer",
                    "i",
                    mode="TF",
                    min_gram_length=1,
                    max_gram_length=2**30,
                    max_skip_count=2**30,
                    ngram_counts=[0],
                    ngram_indexes=[0],
                    pool_int64s=[1],
                )
            ],
            tensor("i", [1, 2, 3]),
        ),
    )
    yield (
        "ngram_indexes enormous",
        model(
            [
                node(
                    "TfIdfVectorizer",
                    "i",
                    mode="TF",
                    min_gram_length=1,
                    max_gram_length=1,
                    max_skip_count=0,
                    ngram_counts=[0],
                    ngram_indexes=[MOST],
                    pool_int64s=[1],
                )
            ],
            tensor("i", [1, 2, 3]),
        ),
    )
    yield (
        "ImageDecoder nonsense",
        model(
            [node("ImageDecoder", "b")], tensor("b", [1, 2, 3], np.uint8), y_type=TensorProto.UINT8, opset=20
        ),
    )
    yield (
        f"SequenceAt {many}",
        model([node("SequenceConstruct", "x x", "s"), node("SequenceAt", "s i")], tensor("i", many)),
    )
    yield (
        "SplitToSequence into tiny",
        model(
            [node("SplitToSequence", "x s", "q"), node("SequenceAt", "q i")], tensor("s", 0), tensor("i", 0)
        ),
    )


def slices() -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    for step in (0, MOST, LEAST, -1):
        yield (
            f"Slice step {step}",
            model(
                [node("Slice", "x s e a t")],
                tensor("s", [0]),
                tensor("e", [MOST]),
                tensor("a", [0]),
                tensor("t", [step]),
            ),
        )
    for axis in (1, -2, MOST, LEAST):
        yield (
            f"Slice axis {axis}",
            model([node("Slice", "x s e a")], tensor("s", [0]), tensor("e", [5]), tensor("a", [axis])),
        )
    yield (
        "Slice axis twice",
        model([node("Slice", "x s e a")], tensor("s", [0, 0]), tensor("e", [5, 5]), tensor("a", [0, 0])),
    )
    yield "Slice lengths differ", model([node("Slice", "x s e")], tensor("s", [0, 0]), tensor("e", [5]))
    yield "Slice of a scalar", model([node("Slice", "x s e")], tensor("s", [0]), tensor("e", [5]), x=())
    yield (
        "Slice without axes",
        model([node("Slice", "x s e a")], tensor("s", []), tensor("e", []), tensor("a", [])),
    )
    yield "Slice opset 9", model([node("Slice", "x", starts=[LEAST], ends=[MOST], axes=[0])], opset=9)
    yield "Slice opset 9 axis", model([node("Slice", "x", starts=[0], ends=[1], axes=[MOST])], opset=9)


def loop(trips: Any, cond: Any, body_cond: bool | None, ends_at: int | None = None) -> onnx.ModelProto:
    """A loop whose state counts up, and whose condition is constant or ends it."""
    steps = [node("Add", "s one", "s2")]
    if ends_at is not None:
        steps.append(node("Less", "i last", "c2"))
    else:
        steps.append(node("Identity", "c" if body_cond is None else "yes", "c2"))
    inside = body(
        steps, [("i", INT64, []), ("c", BOOL, []), ("s", FLOAT, [])], [("c2", BOOL, []), ("s2", FLOAT, [])]
    )
    held = [
        tensor("one", 1.0, np.float32),
        tensor("zero", 0.0, np.float32),
        tensor("yes", bool(body_cond), np.bool_),
        tensor("last", ends_at or 0),
    ]
    names = []
    for name, content, dtype in (("m", trips, np.int64), ("k", cond, np.bool_)):
        names.append("_" if content is None else name)
        if content is not None:
            held.append(tensor(name, content, dtype))
    return model([node("Loop", f"{names[0]} {names[1]} zero", body=inside)], *held)


def control() -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    yield "Loop without end", loop(None, True, True)
    yield "Loop without end or condition", loop(None, None, True)
    yield "Loop most, ends", loop(MOST, True, None, ends_at=5)
    yield "Loop most, no condition, ends", loop(MOST, None, None, ends_at=5)
    yield "Loop unbounded, ends", loop(None, True, None, ends_at=5)
    yield "Loop negative", loop(-1, True, True)
    yield "Loop never", loop(None, False, True)
    yield "Loop most, never", loop(MOST, False, True)
    yield "Loop million", loop(1_000_000, True, True)
    inner = body(
        [node("Add", "t one", "t2"), node("Identity", "d", "d2")],
        [("j", INT64, []), ("d", BOOL, []), ("t", FLOAT, [])],
        [("d2", BOOL, []), ("t2", FLOAT, [])],
    )
    outer = body(
        [node("Loop", "m yes s", "s2", body=inner), node("Identity", "c", "c2")],
        [("i", INT64, []), ("c", BOOL, []), ("s", FLOAT, [])],
        [("c2", BOOL, []), ("s2", FLOAT, [])],
    )
    held = (tensor("one", 1.0, np.float32), tensor("zero", 0.0, np.float32), tensor("yes", True, np.bool_))
    yield "Loop in Loop", model([node("Loop", "m yes zero", body=outer)], *held, tensor("m", 1_000_000))
    grows = body(
        [node("Concat", "s s", "s2", axis=0), node("Identity", "c", "c2")],
        [("i", INT64, []), ("c", BOOL, []), ("s", FLOAT, ["k"])],
        [("c2", BOOL, []), ("s2", FLOAT, ["k2"])],
    )
    yield "Loop doubles its state", model([node("Loop", "m yes x", body=grows)], held[2], tensor("m", 1000))
    collects = body(
        [node("Identity", "c", "c2"), node("Expand", "one w", "r")],
        [("i", INT64, []), ("c", BOOL, [])],
        [("c2", BOOL, []), ("r", FLOAT, None)],
    )
    yield (
        "Loop collects",
        model(
            [node("Loop", "m yes", body=collects)], *held, tensor("m", 1_000_000), tensor("w", [1_000_000])
        ),
    )
    yield "Loop without body", model([node("Loop", "m yes zero")], *held, tensor("m", 3))
    few = body([node("Identity", "c", "c2")], [("i", INT64, []), ("c", BOOL, [])], [("c2", BOOL, [])])
    yield "Loop body has too few", model([node("Loop", "m yes zero", body=few)], *held, tensor("m", 3))
    none = body([], [], [])
    yield "Loop body is empty", model([node("Loop", "m yes zero", body=none)], *held, tensor("m", 3))

    def branch(op_type: str, of: str, kind: int, name: str = "r", **attributes: Any) -> onnx.GraphProto:
        return body([node(op_type, of, name, **attributes)], [], [(name, kind, None)])

    def choose(then: Any, other: Any, *more: onnx.TensorProto, **options: Any) -> onnx.ModelProto:
        condition = more or (tensor("c", True, np.bool_),)
        return model([node("If", "c", then_branch=then, else_branch=other)], *condition, **options)

    same = branch("Relu", "x", FLOAT)
    yield "If sound", choose(same, branch("Abs", "x", FLOAT))
    yield "If of two types", choose(same, branch("Cast", "x", INT64, to=INT64))
    yield (
        "If of two ranks",
        choose(same, branch("Unsqueeze", "x a", FLOAT), tensor("c", True, np.bool_), tensor("a", [0])),
    )
    yield "If tensor or sequence", choose(same, branch("SequenceConstruct", "x", FLOAT))
    yield "If with one branch", model([node("If", "c", then_branch=same)], tensor("c", True, np.bool_))
    yield "If without outputs", choose(same, body([], [], []))
    yield "If of many conditions", choose(same, same, tensor("c", [True, False], np.bool_))
    yield "If of no condition", choose(same, same, tensor("c", [], np.bool_))
    yield "If of a number", choose(same, same, tensor("c", 1.0, np.float32))
    yield "If shadows", choose(branch("Relu", "x", FLOAT, "x"), same)
    yield (
        "If reads the other branch",
        choose(body([node("Relu", "q", "r")], [], [("r", FLOAT, None)]), branch("Abs", "x", FLOAT, "q")),
    )
    given = body([node("Relu", "p", "r")], [("p", FLOAT, None)], [("r", FLOAT, None)])
    yield "If branch takes inputs", choose(given, same)
    yield "If without nodes", choose(body([], [], [("x", FLOAT, None)]), same)
    scan = body(
        [node("Add", "s p", "s2"), node("Identity", "p", "q")],
        [("s", FLOAT, None), ("p", FLOAT, None)],
        [("s2", FLOAT, None), ("q", FLOAT, None)],
    )
    zero = tensor("zero", 0.0, np.float32)
    yield "Scan sound", model([node("Scan", "zero x", "z y", body=scan, num_scan_inputs=1)], zero)
    for count in (0, -1, 3, MOST):
        yield (
            f"Scan of {count}",
            model([node("Scan", "zero x", "z y", body=scan, num_scan_inputs=count)], zero),
        )
    yield (
        "Scan axis",
        model([node("Scan", "zero x", "z y", body=scan, num_scan_inputs=1, scan_input_axes=[7])], zero),
    )
    yield (
        "Scan direction",
        model([node("Scan", "zero x", "z y", body=scan, num_scan_inputs=1, scan_input_directions=[9])], zero),
    )
    yield (
        "Scan lengths differ",
        model(
            [
                node(
                    "Scan",
                    "zero x w",
                    "z y",
                    body=body(
                        [node("Add", "s p", "s2"), node("Mul", "p p2", "q")],
                        [("s", FLOAT, None), ("p", FLOAT, None), ("p2", FLOAT, None)],
                        [("s2", FLOAT, None), ("q", FLOAT, None)],
                    ),
                    num_scan_inputs=2,
                )
            ],
            zero,
            tensor("w", np.ones(7), np.float32),
        ),
    )


# --------------------------------------------------------------------------------------------------- versions


def versions() -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    relu = [node("Relu", "x")]
    for opset in (0, -1, 1, 6, 999, MOST, LEAST):
        yield f"opset {opset}", model(relu, opset=opset)
    for ir_version in (0, -1, 1, 2, 3, 99, MOST):
        yield f"IR {ir_version}", model(relu, ir_version=ir_version)
    yield "domain unknown", model([helper.make_node("Frob", ["x"], ["y"], name="n", domain="com.acme")])
    yield (
        "domain unknown, imported",
        model(
            [helper.make_node("Frob", ["x"], ["y"], name="n", domain="com.acme")],
            opsets=[helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)],
        ),
    )
    yield "operator unknown", model([node("Frob", "x")])
    yield "operator newer", model([node("Gelu", "x")], opset=17)
    yield "operator gone", model([node("Upsample", "x", scales=[1.0])], opset=17)
    yield "ml not imported", model([helper.make_node("Scaler", ["x"], ["y"], name="n", domain="ai.onnx.ml")])
    yield "only ml imported", model(relu, opsets=[helper.make_opsetid("ai.onnx.ml", 3)])
    yield (
        "ml opset 999",
        model(relu, opsets=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 999)]),
    )
    yield "imported twice", model(relu, opsets=[helper.make_opsetid("", 17), helper.make_opsetid("", 11)])
    yield (
        "imported by both names",
        model(relu, opsets=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx", 17)]),
    )
    yield "no import", model(relu, opsets=[])
    yield "no nodes", model([])
    output = model(relu)
    del output.graph.output[:]
    yield "no outputs", output
    yield "attribute unknown", model([node("Relu", "x", frob=1)])
    yield "attribute of another type", model([node("Softmax", "x", axis="one")])
    yield "attribute missing", model([node("Concat", "x x")])
    yield "attribute twice", _twice()
    yield "operands too many", model([node("Relu", "x x")])
    yield "operands too few", model([node("Add", "x")])
    yield "operand empty", model([node("Add", "x _")])
    yield "results too many", model([node("Relu", "x", "y z")])
    yield "types do not fit", model([node("Add", "x w")], tensor("w", 1))
    yield "shapes do not fit", model([node("Add", "x w")], tensor("w", np.ones(3), np.float32))
    yield "declared otherwise", model(relu, y=(3,))
    yield "declared of another type", model(relu, y_type=INT64)
    yield "declared of another rank", model(relu, y=(1, 10))
    yield "input without type", _untyped()
    yield "input of 2^40", model(relu, x=(2**40,))
    yield "input of 2^62 by 4", model(relu, x=(2**62, 4))
    yield "input negative", model(relu, x=(-7,))


def _twice() -> onnx.ModelProto:
    made = model([node("Softmax", "x", axis=0)])
    made.graph.node[0].attribute.add().CopyFrom(made.graph.node[0].attribute[0])
    return made


def _untyped() -> onnx.ModelProto:
    made = model([node("Relu", "x")])
    made.graph.input[0].ClearField("type")
    return made


# --------------------------------------------------------------------------------------------------- nothing


REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
POOLS: dict[str, dict[str, Any]] = {
    "MaxPool": {"kernel_shape": [2, 2]},
    "AveragePool": {"kernel_shape": [2, 2]},
    "LpPool": {"kernel_shape": [2, 2]},
    "GlobalMaxPool": {},
    "GlobalAveragePool": {},
    "GlobalLpPool": {},
}


def nothing() -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    """Tensors without elements through operators that reduce, pool, normalise, choose or join."""
    for shape in ((0,), (0, 3), (3, 0)):
        for kind in REDUCTIONS:
            yield (
                f"Reduce{kind} {shape}",
                model([node(f"Reduce{kind}", "x a")], tensor("a", [0]), x=shape, opset=18),
            )
            yield f"Reduce{kind} {shape} all", model([node(f"Reduce{kind}", "x")], x=shape, opset=18)
        yield f"ArgMax {shape}", model([node("ArgMax", "x", axis=0)], x=shape, y_type=INT64)
        for op_type in ("Softmax", "LogSoftmax", "Hardmax", "Flatten", "NonZero", "Shape", "Size", "IsNaN"):
            kind = {"NonZero": INT64, "Shape": INT64, "Size": INT64, "IsNaN": BOOL}.get(op_type, FLOAT)
            yield f"{op_type} {shape}", model([node(op_type, "x")], x=shape, y_type=kind)
        for op_type in ("Max", "Sum", "Mean"):
            yield f"{op_type} {shape}", model([node(op_type, "x x x")], x=shape)
        yield f"Concat {shape}", model([node("Concat", "x x", axis=0)], x=shape)
        yield f"TopK {shape}", model([node("TopK", "x k", "y i", axis=0)], tensor("k", [0]), x=shape)
        yield f"TopK of 1 {shape}", model([node("TopK", "x k", "y i", axis=0)], tensor("k", [1]), x=shape)
        yield f"Unique {shape}", model([node("Unique", "x")], x=shape)
        yield f"CumSum {shape}", model([node("CumSum", "x a")], tensor("a", 0), x=shape)
        yield f"Tile {shape}", model([node("Tile", "x r")], tensor("r", [2] * len(shape)), x=shape)
        yield f"Tile none {shape}", model([node("Tile", "x r")], tensor("r", [0] * len(shape)), x=shape)
        yield f"Expand {shape}", model([node("Expand", "x r")], tensor("r", [1, *shape]), x=shape)
        yield f"Pad {shape}", model([node("Pad", "x p")], tensor("p", [1] * 2 * len(shape)), x=shape)
        yield (
            f"Pad edge {shape}",
            model([node("Pad", "x p", mode="edge")], tensor("p", [1] * 2 * len(shape)), x=shape),
        )
        yield (
            f"Pad reflect {shape}",
            model([node("Pad", "x p", mode="reflect")], tensor("p", [1] * 2 * len(shape)), x=shape),
        )
        yield (
            f"Pad wrap {shape}",
            model([node("Pad", "x p", mode="wrap")], tensor("p", [1] * 2 * len(shape)), x=shape, opset=19),
        )
        yield f"Reshape {shape}", model([node("Reshape", "x r")], tensor("r", [-1]), x=shape)
        yield (
            f"Reshape 0 {shape}",
            model([node("Reshape", "x r", allowzero=1)], tensor("r", [0, -1]), x=shape),
        )
        yield f"Gather {shape}", model([node("Gather", "x i")], tensor("i", [0]), x=shape)
        yield f"Gather none {shape}", model([node("Gather", "x i")], tensor("i", []), x=shape)
        yield (
            f"Resize {shape}",
            model([node("Resize", "x _ r")], tensor("r", [2.0] * len(shape), np.float32), x=shape),
        )
        yield (
            f"DynamicQuantizeLinear {shape}",
            model([node("DynamicQuantizeLinear", "x", "y a b")], x=shape, y_type=TensorProto.UINT8),
        )
        yield (
            f"LayerNormalization {shape}",
            model(
                [node("LayerNormalization", "x w", axis=-1)],
                tensor("w", np.ones(shape[-1]), np.float32),
                x=shape,
            ),
        )
        yield f"LpNormalization {shape}", model([node("LpNormalization", "x", axis=0)], x=shape)
        yield (
            f"MeanVarianceNormalization {shape}",
            model([node("MeanVarianceNormalization", "x", axes=[0])], x=shape),
        )
        yield f"Einsum {shape}", model([node("Einsum", "x x", equation="...i,...i->...")], x=shape)
        yield (
            f"Compress {shape}",
            model([node("Compress", "x c", axis=0)], tensor("c", [False], np.bool_), x=shape),
        )
        yield f"Split {shape}", model([node("Split", "x", "y z", axis=0, num_outputs=2)], x=shape, opset=18)
        yield (
            f"SplitToSequence {shape}",
            model(
                [node("SplitToSequence", "x", "q", axis=0), node("ConcatFromSequence", "q", axis=0)], x=shape
            ),
        )
        yield (
            f"ScatterElements {shape}",
            model(
                [node("ScatterElements", "x i u", axis=0)],
                tensor("i", np.zeros((0,) * len(shape))),
                tensor("u", np.zeros((0,) * len(shape)), np.float32),
                x=shape,
            ),
        )
        yield (
            f"OneHot {shape}",
            model([node("OneHot", "x d v")], tensor("d", 3), tensor("v", [0.0, 1.0], np.float32), x=shape),
        )
    for shape in ((0, 1, 4, 4), (1, 0, 4, 4), (1, 1, 0, 4), (1, 1, 4, 0)):
        for op_type, attributes in POOLS.items():
            yield f"{op_type} {shape}", model([node(op_type, "x", **attributes)], x=shape)
        w = tensor("w", np.ones((2, shape[1], 2, 2)), np.float32)
        yield f"Conv {shape}", model([node("Conv", "x w")], w, x=shape)
        wt = tensor("w", np.ones((shape[1], 2, 2, 2)), np.float32)
        yield f"ConvTranspose {shape}", model([node("ConvTranspose", "x w")], wt, x=shape)
        ones = tensor("s", np.ones(shape[1]), np.float32)
        yield f"BatchNormalization {shape}", model([node("BatchNormalization", "x s s s s")], ones, x=shape)
        yield (
            f"BatchNormalization training {shape}",
            model([node("BatchNormalization", "x s s s s", "y m v", training_mode=1)], ones, x=shape),
        )
        yield f"InstanceNormalization {shape}", model([node("InstanceNormalization", "x s s")], ones, x=shape)
        yield (
            f"GroupNormalization {shape}",
            model([node("GroupNormalization", "x s s", num_groups=1)], ones, x=shape, opset=21),
        )
        yield f"LRN {shape}", model([node("LRN", "x", size=3)], x=shape)
        yield (
            f"GridSample {shape}",
            model(
                [node("GridSample", "x g")], tensor("g", np.zeros((shape[0], 2, 2, 2)), np.float32), x=shape
            ),
        )
        yield (
            f"RoiAlign {shape}",
            model(
                [node("RoiAlign", "x r b")],
                tensor("r", np.zeros((0, 4)), np.float32),
                tensor("b", np.zeros(0)),
                x=shape,
            ),
        )
        yield f"DepthToSpace {shape}", model([node("DepthToSpace", "x", blocksize=2)], x=shape)
        yield f"SpaceToDepth {shape}", model([node("SpaceToDepth", "x", blocksize=2)], x=shape)
        yield (
            f"Upsample {shape}",
            model([node("Resize", "x _ r", mode="linear")], tensor("r", [1.0, 1, 2, 2], np.float32), x=shape),
        )
    for left, right in (
        ((0, 3), (3, 2)),
        ((2, 0), (0, 3)),
        ((2, 3), (3, 0)),
        ((0, 2, 3), (3, 2)),
        ((2, 0, 0), (2, 0, 0)),
    ):
        yield (
            f"MatMul {left} {right}",
            model([node("MatMul", "x w")], tensor("w", np.ones(right), np.float32), x=left),
        )
        if len(left) == 2:
            yield (
                f"Gemm {left} {right}",
                model(
                    [node("Gemm", "x w b")],
                    tensor("w", np.ones(right), np.float32),
                    tensor("b", np.ones(right[1]), np.float32),
                    x=left,
                ),
            )
    for shape in ((0, 1, 3), (4, 0, 3), (4, 1, 0)):
        for op_type, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
            yield (
                f"{op_type} {shape}",
                model(
                    [node(op_type, "x w r", "y", hidden_size=2)],
                    tensor("w", np.ones((1, 2 * gates, shape[2])), np.float32),
                    tensor("r", np.ones((1, 2 * gates, 2)), np.float32),
                    x=shape,
                ),
            )
    zero = tensor("zero", 0.0, np.float32)
    scan = body(
        [node("Add", "s p", "s2"), node("Identity", "p", "q")],
        [("s", FLOAT, []), ("p", FLOAT, [])],
        [("s2", FLOAT, []), ("q", FLOAT, [])],
    )
    yield (
        "Scan of nothing",
        model([node("Scan", "zero x", "z y", body=scan, num_scan_inputs=1)], zero, x=(0,)),
    )
    yield "Loop of 0", loop(0, True, True)
    yield (
        "SoftmaxCrossEntropyLoss of nothing",
        model([node("SoftmaxCrossEntropyLoss", "x l")], tensor("l", np.zeros(0)), x=(0, 3)),
    )
    yield "axes empty", model([node("ReduceSum", "x a")], tensor("a", []), x=(2, 3))
    yield (
        "axes empty, noop",
        model([node("ReduceSum", "x a", noop_with_empty_axes=1)], tensor("a", []), x=(2, 3)),
    )
    yield "axes twice", model([node("ReduceSum", "x a")], tensor("a", [0, -2]), x=(2, 3))
    yield "Squeeze none", model([node("Squeeze", "x a")], tensor("a", []), x=(1, 3))
    yield "Unsqueeze none", model([node("Unsqueeze", "x a")], tensor("a", []), x=(1, 3))
    yield "Unsqueeze twice", model([node("Unsqueeze", "x a")], tensor("a", [0, 0]), x=(1, 3))
    yield (
        "BatchNormalization 7 spatial 0",
        model(
            [node("BatchNormalization", "x s s s s", spatial=0)],
            tensor("s", np.ones((2, 3)), np.float32),
            x=(1, 2, 3),
            opset=7,
        ),
    )


def odd() -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    """Files that are not quite what the standard says, and that some exporter writes."""

    def changed(made: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
        change(made)
        return made

    relu = [node("Relu", "x")]
    info = helper.make_tensor_value_info
    w = tensor("w", np.ones(10), np.float32)

    def outputs(*values: onnx.ValueInfoProto) -> Callable[[onnx.ModelProto], object]:
        return lambda m: m.graph.output.extend(values)

    yield "output is an input", changed(model(relu), outputs(info("x", FLOAT, [10])))
    yield "output is an initialiser", changed(model(relu, w), outputs(info("w", FLOAT, [10])))
    yield "output twice", changed(model(relu), outputs(info("y", FLOAT, [10])))
    yield "output is a constant", model([node("Constant", "", "y", value_float=1.0)])
    yield (
        "input of no shape",
        changed(model(relu), lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")),
    )
    yield "input unused", changed(model(relu), lambda m: m.graph.input.append(info("z", FLOAT, [2])))
    yield (
        "one name for two extents",
        changed(
            model([node("Concat", "x z", axis=0)], x=("N",)),
            lambda m: m.graph.input.append(
                info(
                    "z",
                    FLOAT,
                    [
                        "N",
                    ],
                )
            ),
        ),
    )
    yield (
        "name of an output's extent is another's",
        model([node("Concat", "x x", axis=0)], x=("N",), y=("N",)),
    )
    yield (
        "value_info wrong",
        changed(
            model([node("Relu", "x", "a"), node("Abs", "a")]),
            lambda m: m.graph.value_info.append(info("a", FLOAT, [3])),
        ),
    )
    yield (
        "value_info of another rank",
        changed(
            model([node("Relu", "x", "a"), node("Abs", "a")]),
            lambda m: m.graph.value_info.append(info("a", FLOAT, [1, 10])),
        ),
    )
    yield (
        "value_info of nothing",
        changed(model(relu), lambda m: m.graph.value_info.append(info("q", FLOAT, [3]))),
    )
    yield (
        "value_info twice",
        changed(
            model([node("Relu", "x", "a"), node("Abs", "a")]),
            lambda m: m.graph.value_info.extend([info("a", FLOAT, [10]), info("a", FLOAT, [10])]),
        ),
    )
    yield (
        "value_info of another type",
        changed(
            model([node("Relu", "x", "a"), node("Abs", "a")]),
            lambda m: m.graph.value_info.append(info("a", INT64, [10])),
        ),
    )
    yield "output declared wrong, used", model([node("Relu", "x", "y"), node("Abs", "y", "b")], y=(3,))
    yield (
        "initialiser declared of another shape",
        changed(model([node("Add", "x w")], w), lambda m: m.graph.input.append(info("w", FLOAT, [1]))),
    )
    yield (
        "initialiser declared without shape",
        changed(model([node("Add", "x w")], w), lambda m: m.graph.input.append(info("w", FLOAT, None))),
    )
    yield (
        "initialiser overridable",
        changed(model([node("Add", "x w")], w), lambda m: m.graph.input.append(info("w", FLOAT, [10]))),
    )
    yield "graph without name", changed(model(relu), lambda m: m.graph.ClearField("name"))
    yield (
        "node names twice",
        model(
            [
                helper.make_node("Relu", ["x"], ["a"], name="n"),
                helper.make_node("Abs", ["a"], ["y"], name="n"),
            ]
        ),
    )
    yield (
        "nodes without names",
        model([helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Abs", ["a"], ["y"])]),
    )
    yield "nodes backwards", model([node("Abs", "a"), node("Relu", "x", "a")])
    yield "nodes that nothing needs", model([node("Relu", "x"), node("Abs", "x", "q")])
    yield (
        "attributes without type",
        changed(
            model([node("Softmax", "x", axis=0)]), lambda m: m.graph.node[0].attribute[0].ClearField("type")
        ),
    )
    yield (
        "attribute of an empty list",
        changed(
            model([node("ReduceSum", "x")], opset=11),
            lambda m: m.graph.node[0].attribute.add(name="axes", type=onnx.AttributeProto.INTS),
        ),
    )
    yield "trailing empty operands", model([node("Clip", "x _ _")])
    yield "too many empty operands", model([node("Relu", "x _ _")])
    yield "empty optional results", model([node("Dropout", "x", "y _")])
    yield (
        "results in the middle absent",
        model(
            [node("LSTM", "x w r", "_ y", hidden_size=2)],
            tensor("w", np.ones((1, 8, 3)), np.float32),
            tensor("r", np.ones((1, 8, 2)), np.float32),
            x=(4, 1, 3),
        ),
    )
    yield "function that nothing calls", model(relu, functions=[function([node("Frob", "a", "b")])])
    yield (
        "function of another opset",
        model(
            [helper.make_node("F", ["x"], ["y"], name="n", domain="own")],
            functions=[
                helper.make_function(
                    "own", "F", ["a"], ["b"], [node("Relu", "a", "b")], [helper.make_opsetid("", 14)]
                )
            ],
        ),
    )
    yield (
        "function with fewer results used",
        called(function([node("Relu", "a", "b"), node("Abs", "a", "c")], "a", "b c")),
    )
    yield (
        "function domain not imported",
        changed(called(function([node("Relu", "a", "b")])), lambda m: m.opset_import.pop()),
    )
    yield (
        "ml not imported, used",
        model([helper.make_node("Binarizer", ["x"], ["y"], name="n", domain="ai.onnx.ml", threshold=0.5)]),
    )
    yield (
        "microsoft not imported",
        model([helper.make_node("QuickGelu", ["x"], ["y"], name="n", domain="com.microsoft")]),
    )
    yield "body without types", _without_types()
    condition = tensor("c", True, np.bool_)
    branches = {
        "then_branch": body([node("Relu", "x", "r")], [], [("r", FLOAT, None)]),
        "else_branch": body([node("Abs", "x", "z")], [], [("z", FLOAT, None)]),
    }
    yield (
        "branch without output type",
        changed(
            model([node("If", "c", **branches)], condition),
            lambda m: [a.g.output[0].ClearField("type") for a in m.graph.node[0].attribute],
        ),
    )
    yield (
        "same names in both branches",
        model(
            [
                node(
                    "If",
                    "c",
                    then_branch=body([node("Relu", "x", "r")], [], [("r", FLOAT, None)]),
                    else_branch=body([node("Abs", "x", "r")], [], [("r", FLOAT, None)]),
                )
            ],
            condition,
        ),
    )
    one = tensor("one", 1.0, np.float32)
    yield from {
        "Clip by vectors": model(
            [node("Clip", "x l h")], tensor("l", [0.0], np.float32), tensor("h", [0.5], np.float32)
        ),
        "Pad by a vector": model([node("Pad", "x p v")], tensor("p", [1, 1]), tensor("v", [7.0], np.float32)),
        "TopK of a scalar": model([node("TopK", "x k", "y i")], tensor("k", 2)),
        "Range of vectors": model(
            [node("Range", "a b c")], *(tensor(n, [v], np.float32) for n, v in (("a", 0), ("b", 3), ("c", 1)))
        ),
        "OneHot of a vector": model(
            [node("OneHot", "i d v")], tensor("i", [0, 1]), tensor("d", [3]), tensor("v", [0, 1], np.float32)
        ),
        "CumSum along a vector": model([node("CumSum", "x a")], tensor("a", [0])),
        "Squeeze of a scalar": model([node("Squeeze", "x a")], tensor("a", 0), x=(1, 10)),
        "Unsqueeze of a scalar": model([node("Unsqueeze", "x a")], tensor("a", 0)),
        "ReduceSum of a scalar": model([node("ReduceSum", "x a")], tensor("a", 0)),
        "Slice of scalars": model([node("Slice", "x s e")], tensor("s", 0), tensor("e", 5)),
        "Slice of int32": model(
            [node("Slice", "x s e")], tensor("s", [0], np.int32), tensor("e", [5], np.int32)
        ),
        "Slice of int32 and int64": model(
            [node("Slice", "x s e")], tensor("s", [0], np.int32), tensor("e", [5])
        ),
        "Reshape by int32": model([node("Reshape", "x s")], tensor("s", [2, 5], np.int32)),
        "Expand by int32": model([node("Expand", "x s")], tensor("s", [2, 10], np.int32)),
        "Reshape to a scalar's number": model([node("Reshape", "x s")], tensor("s", -1)),
        "Tile by a scalar": model([node("Tile", "x r")], tensor("r", 2)),
        "Split by a scalar": model([node("Split", "x s", "y z")], tensor("s", 5)),
        "Dropout of vectors": model(
            [node("Dropout", "x r t")], tensor("r", [0.5], np.float32), tensor("t", [False], np.bool_)
        ),
        "Trilu by a vector": model([node("Trilu", "x k")], tensor("k", [1]), x=(3, 3)),
        "Gather by int32": model([node("Gather", "x i")], tensor("i", [0, 3], np.int32)),
        "GatherElements by int32": model([node("GatherElements", "x i")], tensor("i", [0, 3], np.int32)),
        "Loop by int32": model(
            [node("Loop", "m k one", body=_unchanged())],
            one,
            tensor("m", 3, np.int32),
            tensor("k", True, np.bool_),
        ),
        "Loop of vectors": model(
            [node("Loop", "m k one", body=_unchanged())],
            one,
            tensor("m", [3]),
            tensor("k", [True], np.bool_),
        ),
        "If of a vector": model(
            [
                node(
                    "If",
                    "c",
                    then_branch=body([node("Relu", "x", "r")], [], [("r", FLOAT, None)]),
                    else_branch=body([node("Abs", "x", "q")], [], [("q", FLOAT, None)]),
                )
            ],
            tensor("c", [True], np.bool_),
        ),
        "Add of int32 and int64": model(
            [node("Add", "a b")], tensor("a", [1], np.int32), tensor("b", [1]), y_type=INT64
        ),
        "Pow of float and int": model([node("Pow", "x b")], tensor("b", 2)),
        "Where of a number": model([node("Where", "c x x")], tensor("c", [1], np.int32)),
        "Resize of empty scales": model(
            [node("Resize", "x r s z")],
            tensor("r", [], np.float32),
            tensor("s", [], np.float32),
            tensor("z", [20]),
        ),
        "Resize of scales and sizes": model(
            [node("Resize", "x _ s z")], tensor("s", [2.0], np.float32), tensor("z", [20])
        ),
        "ConstantOfShape of a scalar value": model(
            [node("ConstantOfShape", "s", value=raw("v", FLOAT, [], np.float32(1).tobytes()))],
            tensor("s", [3]),
        ),
        "Constant with doc": model([node("Constant", "", "k", value=one), node("Add", "x k")]),
        "Gemm of a matrix bias": model(
            [node("Gemm", "x w b")],
            tensor("w", np.ones((3, 2)), np.float32),
            tensor("b", np.ones((1, 2)), np.float32),
            x=(4, 3),
        ),
        "Conv bias of two axes": model(
            [node("Conv", "x w b")],
            tensor("w", np.ones((1, 1, 2, 2)), np.float32),
            tensor("b", np.ones((1, 1)), np.float32),
            x=(1, 1, 4, 4),
        ),
        "Conv kernel_shape contradicts": model(
            [node("Conv", "x w", kernel_shape=[3, 3])],
            tensor("w", np.ones((1, 1, 2, 2)), np.float32),
            x=(1, 1, 4, 4),
        ),
        "Conv auto_pad and pads": model(
            [node("Conv", "x w", auto_pad="SAME_UPPER", pads=[1, 1, 1, 1])],
            tensor("w", np.ones((1, 1, 3, 3)), np.float32),
            x=(1, 1, 4, 4),
        ),
        "Conv auto_pad VALID and pads": model(
            [node("Conv", "x w", auto_pad="VALID", pads=[1, 1, 1, 1])],
            tensor("w", np.ones((1, 1, 3, 3)), np.float32),
            x=(1, 1, 4, 4),
        ),
        "Conv auto_pad empty": model(
            [node("Conv", "x w", auto_pad="")], tensor("w", np.ones((1, 1, 3, 3)), np.float32), x=(1, 1, 4, 4)
        ),
        "BatchNormalization scale of two axes": model(
            [node("BatchNormalization", "x s s s s")],
            tensor("s", np.ones((1, 2)), np.float32),
            x=(1, 2, 4, 4),
        ),
        "BatchNormalization of epsilon 0": model(
            [node("BatchNormalization", "x s s s s", epsilon=0.0)],
            tensor("s", np.ones(2), np.float32),
            x=(1, 2, 4, 4),
        ),
        "QuantizeLinear of vectors": model(
            [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")],
            tensor("s", [0.5], np.float32),
            tensor("z", [3], np.uint8),
        ),
        "DequantizeLinear axis beyond": model(
            [node("QuantizeLinear", "x s z", "q", axis=5), node("DequantizeLinear", "q s z", axis=5)],
            tensor("s", 0.5, np.float32),
            tensor("z", 3, np.uint8),
        ),
        "Concat of one": model([node("Concat", "x", axis=0)]),
        "Cast of saturate": model([node("Cast", "x", to=FLOAT, saturate=1)], opset=19),
        "Reshape 0 beyond": model([node("Reshape", "x s")], tensor("s", [10, 1, 0])),
        "Transpose of negative": model([node("Transpose", "x", perm=[-1, 0])], x=(2, 3)),
        "AveragePool ceil": model(
            [node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], x=(1, 1, 4, 4)
        ),
        "MaxPool storage_order": model(
            [node("MaxPool", "x", "y i", kernel_shape=[2, 2], storage_order=1)], x=(1, 1, 4, 4)
        ),
        "NonMaxSuppression of scalars": model(
            [node("NonMaxSuppression", "b s m t", "i"), node("Cast", "i", to=FLOAT)],
            tensor("b", np.ones((1, 3, 4)), np.float32),
            tensor("s", np.ones((1, 1, 3)), np.float32),
            tensor("m", 2),
            tensor("t", 0.5, np.float32),
        ),
        "EyeLike of a vector": model([node("EyeLike", "x")]),
        "Einsum in capitals": model([node("Einsum", "x x", equation="I,I->")]),
        "Einsum with spaces": model([node("Einsum", "x x", equation=" i , i -> ")]),
        "Softmax of a scalar": model([node("Softmax", "x")], x=()),
        "Flatten of a scalar": model([node("Flatten", "x", axis=0)], x=()),
        "MatMul of scalars": model([node("MatMul", "x x")], x=()),
        "Gather of a scalar": model([node("Gather", "x i")], tensor("i", 0), x=()),
        "SequenceAt of a vector": model(
            [node("SequenceConstruct", "x x", "q"), node("SequenceAt", "q i")], tensor("i", [0])
        ),
    }.items()


def _unchanged() -> onnx.GraphProto:
    """The body of a loop that hands on its condition and its state."""
    return body(
        [node("Identity", "c", "c2"), node("Identity", "s", "s2")],
        [("i", INT64, []), ("c", BOOL, []), ("s", FLOAT, [])],
        [("c2", BOOL, []), ("s2", FLOAT, [])],
    )


def _without_types() -> onnx.ModelProto:
    made = loop(3, True, True)
    inside = made.graph.node[0].attribute[0].g
    for value in (*inside.input, *inside.output):
        value.ClearField("type")
    return made


GROUPS: dict[str, Callable[[], Iterator[tuple[str, onnx.ModelProto | bytes]]]] = {
    "nesting": nesting,
    "damaged": damaged,
    "tensors": tensors,
    "sizes": sizes,
    "slices": slices,
    "control": control,
    "versions": versions,
    "nothing": nothing,
    "odd": odd,
}


def files(group: str) -> Files:
    """The files of a group by name."""
    made: Files = {}
    for name, content in GROUPS[group]():
        assert name not in made, name
        made[name] = content if isinstance(content, bytes) else content.SerializeToString()
    return made
