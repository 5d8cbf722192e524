from __future__ import annotations

from dataclasses import fields

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import (
    ONWARD_DOMAIN,
    Array,
    Builder,
    Dim,
    attributes_of,
    dims_of,
    dtype_of,
    numpy_dtype,
    op,
    requests,
)
from onward.graph.requests import Static, Values
from onward.ops._resize import Lines, Resizing, by_growth, resampled
from onward.ops._shape import constant_of, normalized, require_shape


@op("ResizeGrad", since=1, domain=ONWARD_DOMAIN)
class ResizeGrad(Resizing):
    """The gradient of Resize: dX = Rᵀ dY, where Y = R X but for what is extrapolated.

    Inputs: dY; shape, int64, that of X; roi, scales and sizes as Resize has them. The attributes are those of
    Resize.
    """

    def lines(
        self, shape: tuple[int, ...], roi: Array | None, scales: Array | None, sizes: Array | None
    ) -> Lines:
        """What happens to dY along each axis."""
        forward = self.resamplings(shape, roi, scales, sizes)
        return by_growth((axis, line.transposed()) for axis, line in forward)

    def kernel(
        self,
        dY: Array,
        shape: Array,
        roi: Array | None = None,
        scales: Array | None = None,
        sizes: Array | None = None,
    ) -> Array:
        lines = self.lines(tuple(int(n) for n in shape), roi, scales, sizes)
        wanted = [int(n) for n in shape]
        for axis, line in lines:
            wanted[axis] = line.extent
        require_shape("dY", dY, tuple(wanted))
        return resampled(dY, lines)

    def infer(
        self, dY: ir.Value, shape: ir.Value, *_: ir.Value | None
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(dY), _extents(shape, dY))]

    def lower(
        self,
        static: Static,
        outputs: Values,
        dY: ir.Value,
        shape: ir.Value,
        roi: ir.Value | None = None,
        scales: ir.Value | None = None,
        sizes: ir.Value | None = None,
    ) -> requests.Request:
        known = self.constants(static, roi, scales, sizes)
        if known is None:
            return requests.Unsupported("roi or scales are not constant")
        lines = self.lines(static.shape(outputs[0]), *known)
        return requests.Resample(outputs[0], dY, lines) if lines else requests.Identity(outputs[0], dY)

    def expand(
        self,
        g: Builder,
        dY: ir.Value,
        shape: ir.Value,
        roi: ir.Value | None = None,
        scales: ir.Value | None = None,
        sizes: ir.Value | None = None,
    ) -> ir.Value:
        dims, have = _extents(shape, dY), dims_of(dY)
        if dims is None or have is None:
            raise UnsupportedError("the body of ResizeGrad needs the rank of dY")
        rank, dtype = len(dims), numpy_dtype(dtype_of(dY))
        resized = list(range(rank)) if self.axes is None else [normalized(a, rank) for a in self.axes]
        known = [constant_of(v) for v in (roi, scales, sizes)]
        if sizes is not None and known[2] is None and self.keep_aspect_ratio_policy == "stretch":
            known[2] = _sizes([dims[a] for a in resized], [have[a] for a in resized])
        told = all(v is None or k is not None for v, k in zip((roi, scales, sizes), known, strict=True))
        if told and all(isinstance(dims[a], int) or _stays(k, *known) for k, a in enumerate(resized)):
            fixed = tuple(d if isinstance(d, int) else 1 for d in dims)
            for axis, line in self.resamplings(fixed, *known):
                dY = _multiplied(g, dY, g.const(line.matrix().astype(dtype)), axis, rank)
            return dY
        if self.keep_aspect_ratio_policy != "stretch":
            raise UnsupportedError(
                f"the body of ResizeGrad with keep_aspect_ratio_policy {self.keep_aspect_ratio_policy!r} "
                "needs the extents of the axes that are resized; fix them in the model's input"
            )
        dx = dY
        for k, axis in enumerate(resized):
            if not _stays(k, *known):
                extents = g.Slice(shape, [axis], [axis + 1]), g.Slice(g.Shape(dY), [axis], [axis + 1])
                region = None if roi is None else g.Gather(roi, [k, k + len(resized)])
                scale = None if sizes is not None else scales
                dx = _multiplied(g, dx, self._matrix(g, dY, extents, region, scale, k), axis, rank)
        return dx

    def _matrix(
        self,
        g: Builder,
        dY: ir.Value,
        extents: tuple[ir.Value, ir.Value],
        roi: ir.Value | None,
        scales: ir.Value | None,
        k: int,
    ) -> ir.Value:
        """[out, extent] of an axis whose extents are known when the graph runs: Resize of a unit matrix."""
        extent, out = extents
        zero = ir.tensor(np.zeros(1, numpy_dtype(dtype_of(dY))))
        unit = g.EyeLike(g.ConstantOfShape(g.Concat(extent, extent, axis=0), value=zero))
        return g.Resize(
            unit,
            roi if self.coordinate_transformation_mode == "tf_crop_and_resize" else None,
            None if scales is None else g.Slice(scales, [k], [k + 1]),
            out if scales is None else None,
            **{**attributes_of(self), "axes": [0]},
        )

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        dY: ir.Value,
        shape: ir.Value,
        roi: ir.Value | None = None,
        scales: ir.Value | None = None,
        sizes: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        # older graphs have a Resize without the attributes that came later
        usual = {f.name: f.default for f in fields(self)}
        stated = {name: value for name, value in attributes_of(self).items() if value != usual[name]}
        ddy = g.Resize(dy, roi, scales, sizes, **stated)
        return ddy, None, None, None, None


def _stays(k: int, roi: Array | None, scales: Array | None, sizes: Array | None) -> bool:
    """Whether axis k of those that are named has a scale of 1."""
    return roi is None and scales is not None and scales.size > k and scales[k] == 1


def _sizes(dims: list[Dim], have: list[Dim]) -> Array | None:
    """The sizes that these extents of X and Y come from, if all are known."""
    if all(isinstance(n, int) for n in (*dims, *have)):
        return np.asarray(have, np.int64)
    return None


def _extents(shape: ir.Value, dY: ir.Value) -> tuple[Dim, ...] | None:
    """X's extents, as far as they are known."""
    if (known := constant_of(shape)) is not None:
        return tuple(int(n) for n in known)
    node = shape.producer()
    if node is not None and node.op_type == "Shape" and not node.attributes:
        of = node.inputs[0]
        if of is not None and (found := dims_of(of)) is not None:
            return found
    have = dims_of(dY)
    return None if have is None else (None,) * len(have)


def _multiplied(g: Builder, x: ir.Value, matrix: ir.Value, axis: int, rank: int) -> ir.Value:
    """x · matrix along an axis."""
    if axis == rank - 1:
        return g.MatMul(x, matrix)
    if axis == rank - 2:
        return g.MatMul(g.Transpose(matrix), x)
    swap = [rank - 1 if a == axis else axis if a == rank - 1 else a for a in range(rank)]
    return g.Transpose(g.MatMul(g.Transpose(x, perm=swap), matrix), perm=swap)
