from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Dim, Op, op


@op("NonMaxSuppression", since=(10, 11))
class NonMaxSuppression(Op):
    """(batch, class, box) of the boxes with the best scores that overlap no better one by more than
    iou_threshold; of equal scores the first box.

    Boxes are any two opposite corners [y, x, y, x], or with center_point_box [x, y, width, height].
    """

    center_point_box: int = 0

    def kernel(
        self,
        boxes: Array,
        scores: Array,
        max_output_boxes_per_class: Array | None = None,
        iou_threshold: Array | None = None,
        score_threshold: Array | None = None,
    ) -> Array:
        if boxes.ndim != 3 or scores.ndim != 3 or boxes.shape[2] != 4:
            raise ShapeError(f"boxes {list(boxes.shape)} and scores {list(scores.shape)} do not fit")
        if (boxes.shape[0], boxes.shape[1]) != (scores.shape[0], scores.shape[2]):
            raise ShapeError(f"boxes {list(boxes.shape)} and scores {list(scores.shape)} do not fit")
        most = int(_number(max_output_boxes_per_class, 0))
        overlap = float(_number(iou_threshold, 0.0))
        least = None if score_threshold is None else float(_number(score_threshold, 0.0))
        found: list[tuple[int, int, int]] = []
        for n in range(len(boxes) if most > 0 else 0):
            low, high = _corners(boxes[n], bool(self.center_point_box))
            for c in range(scores.shape[1]):
                kept = _kept(low, high, scores[n, c], most, overlap, least)
                found += [(n, c, b) for b in kept]
        return np.asarray(found, np.int64).reshape(-1, 3)

    def infer(self, *_: ir.Value | None) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(ir.DataType.INT64, (None, 3))]


def _number(x: Array | None, default: float) -> float:
    return default if x is None or x.size == 0 else x.reshape(-1)[0]


def _corners(boxes: Array, centred: bool) -> tuple[Array, Array]:
    if centred:
        return boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    return np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])


def _kept(
    low: Array, high: Array, scores: Array, most: int, overlap: float, least: float | None
) -> list[int]:
    """The boxes of one class that stay, best first."""
    order = np.argsort(-scores, kind="stable")
    if least is not None:
        order = order[scores[order] > least]
    areas = np.prod(high - low, axis=1)
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        sides = np.minimum(high[rest], high[best]) - np.maximum(low[rest], low[best])
        common = np.prod(np.maximum(sides, 0), axis=1)
        union = areas[rest] + areas[best] - common
        valid = (common > 0) & (areas[rest] > 0) & (areas[best] > 0) & (union > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            order = rest[~(valid & (common / union > overlap))]
    return kept
