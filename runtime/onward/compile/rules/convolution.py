"""Convolution in its three directions."""

from __future__ import annotations

import onnx_ir as ir

from onward.compile import geometry
from onward.compile.codegen.target import Target
from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels.layout import Convolution, Image
from onward.compile.options import CompileOptions
from onward.compile.program import Program
from onward.compile.registry import Borders, lowers
from onward.compile.rules.integer_product import convolved_in_integers
from onward.compile.techniques import Technique, technique, weight_technique
from onward.compile.tensors import Buffer, Tensor
from onward.compile.write_back import WriteBack
from onward.graph import requests

__all__: list[str] = []


def _image(tensor: Tensor) -> Image:
    assert tensor.image is not None
    return tensor.image


def _unbordered(
    program: Program,
    x: ir.Value,
    y: ir.Value,
    request: requests.Convolution | requests.ConvolutionInput | requests.ConvolutionWeight,
) -> Convolution | None:
    """A convolution's geometry before its images have borders; None over other than one or two axes."""
    if len(program.shape(x)) not in (3, 4):
        return None
    source, result = (geometry.image(program.shape(v)) for v in (x, y))
    return geometry.convolution(request.geometry, source, result, request.group, program.dtypes[x])


def _packed(c: Context, how: Technique, w: ir.Value, conv: Convolution) -> Buffer:
    """Packed weights, shared by the convolutions that read the same weights alike."""
    key = (
        how.name,
        w,
        conv.dtype,
        conv.kernel,
        conv.strides,
        conv.dilations,
        conv.pads,
        conv.group,
        conv.x,
        conv.y,
    )

    def make() -> Buffer:
        found = c.scratch(how.packed_size(conv, c.target), c.dtype(w))
        kernel = how.pack(conv, c.target)
        slots: dict[str, Slot] = {how.source: c.plain(w), how.packed: found}
        if "batch" in kernel.slots:
            slots["batch"] = 1
        c.call(kernel, slots, label="pack weights")
        return found

    return c.once(key, make)


def _convolve(
    c: Context,
    how: Technique,
    conv: Convolution,
    source: Tensor,
    w: ir.Value,
    back: WriteBack,
    bias: Tensor | None,
) -> None:
    """One direction of a convolution, and what its epilogue computes."""
    epilogue, operands = back.epilogue(bias)
    packed = _packed(c, how, w, conv)
    batch = source.shape[0]
    slots: dict[str, Slot] = {"a": source.buffer, "b": packed, "c": back.target.buffer, "batch": batch}
    # "full" operands start where the target's border does, like the target
    slots |= {f"e{i}": t.buffer if t.image else t for i, t in enumerate(operands)}
    c.call(how.kernel(conv, c.target, epilogue), slots, batch=batch)


def _forward_unsuited(q: Queries, request: requests.Convolution) -> str | None:
    x, w, y = request.x, request.w, request.y
    return q.not_floats(x, w, request.bias) or q.empty(x, y) or q.not_images(y, x)


def _forward_borders(
    program: Program, request: requests.Convolution, options: CompileOptions, target: Target
) -> Borders:
    if (conv := _unbordered(program, request.x, request.y, request)) is None:
        return Borders()
    return Borders({request.x: technique(conv, options, target, backward=False).border(conv)})


@lowers(requests.Convolution, suits=_forward_unsuited, borders=_forward_borders)
def forward(c: Context, request: requests.Convolution) -> None:
    """By the technique that is fastest for the shape."""
    back = c.write_back(request.y, image=True)
    source = c.image(request.x)
    conv = geometry.convolution(
        request.geometry, _image(source), _image(back.target), request.group, source.dtype
    )
    bias = None if request.bias is None else c.plain(request.bias)
    if convolved_in_integers(c, back, conv, source, bias, request.x, request.w):
        return
    how = technique(conv, c.options, c.target, backward=False)
    _convolve(c, how, conv, source, request.w, back, bias)


def _input_unsuited(q: Queries, request: requests.ConvolutionInput) -> str | None:
    dx, dy = request.dx, request.dy
    return q.not_floats(dy, request.w, request.bias) or q.empty(dx, dy) or q.not_images(dx, dy)


def _input_borders(
    program: Program, request: requests.ConvolutionInput, options: CompileOptions, target: Target
) -> Borders:
    if (conv := _unbordered(program, request.dx, request.dy, request)) is None:
        return Borders()
    return Borders({request.dy: technique(conv, options, target, backward=True).border(conv)})


@lowers(requests.ConvolutionInput, suits=_input_unsuited, borders=_input_borders)
def backward_data(c: Context, request: requests.ConvolutionInput) -> None:
    """By the technique that is fastest for the shape."""
    back = c.write_back(request.dx, image=True)
    source = c.image(request.dy)
    conv = geometry.convolution(
        request.geometry, _image(back.target), _image(source), request.group, source.dtype
    )
    bias = None if request.bias is None else c.plain(request.bias)
    _convolve(c, technique(conv, c.options, c.target, backward=True), conv, source, request.w, back, bias)


def _weight_unsuited(q: Queries, request: requests.ConvolutionWeight) -> str | None:
    dy, x = request.dy, request.x
    return q.not_floats(dy, x) or q.empty(x, dy) or q.not_images(x, dy)


def _weight_borders(
    program: Program, request: requests.ConvolutionWeight, options: CompileOptions, target: Target
) -> Borders:
    if (conv := _unbordered(program, request.x, request.dy, request)) is None:
        return Borders()
    return Borders({request.x: weight_technique(conv, target).border(conv)})


@lowers(requests.ConvolutionWeight, suits=_weight_unsuited, borders=_weight_borders)
def backward_weights(c: Context, request: requests.ConvolutionWeight) -> None:
    """Sets of sums, then the weights in ONNX's order."""
    source, gradient = c.image(request.x), c.image(request.dy)
    conv = geometry.convolution(
        request.geometry, _image(source), _image(gradient), request.group, source.dtype
    )
    how = weight_technique(conv, c.target)
    parts = how.parts(conv, c.target, c.threads)
    sums = c.scratch(parts * how.size(conv, c.target), source.dtype)
    batch = source.shape[0]
    images: dict[str, Slot] = {"a": source.buffer, "b": gradient.buffer, "c": sums, "batch": batch}
    c.call(how.gradient(conv, c.target), images, batch=batch)
    target = c.new_plain(request.dw)
    finish = how.finish(conv, c.target)
    slots = {name: slot for name, slot in images.items() if name in finish.slots}
    c.call(finish, slots | {"dw": target, "parts": parts})
