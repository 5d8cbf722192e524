"""Softmax cross-entropy and its gradient, a row at a time."""

from __future__ import annotations

import numpy as np

from onward.compile.context import Context, Queries
from onward.compile.kernels.expression import operand
from onward.compile.registry import lowers
from onward.compile.rules.reduction import reduce_to_columns
from onward.compile.rules.rows import Pass, rows_call
from onward.graph.requests import CrossEntropy, CrossEntropyGradient

__all__: list[str] = []


def _unsuited(q: Queries, request: CrossEntropy) -> str | None:
    if reason := q.not_floats(request.scores) or q.empty(request.scores):
        return reason
    n, _ = q.shape(request.scores)
    if q.shape(request.labels) != (n,):
        return f"{n} rows of scores for labels {q.shape(request.labels)}"
    return None


@lowers(CrossEntropy, suits=_unsuited)
def cross_entropy(c: Context, request: CrossEntropy) -> None:
    """The loss of each row, or their sum or mean; labels are checked when the plan runs."""
    n, classes = c.shape(request.scores)
    source, label = c.plain(request.scores), c.plain(request.labels)
    c.check_indices(label, classes, low=0, what="label")
    x, wanted, column = operand(0), operand(1), operand(2)
    highest, log_sum, at_label = operand(3), operand(4), operand(5)
    passes: list[Pass] = [
        ("max", x, None),
        ("sum", (x - highest).apply("exp"), operand(4).apply("log")),
        ("sum", column.apply("eq", wanted).apply("select", x - highest, 0.0), None),
    ]
    each = log_sum - at_label
    smoothing = request.smoothing
    if smoothing:
        passes.append(("sum", x - highest, None))
        each = each * (1 - smoothing) + (log_sum - operand(6) * (1.0 / classes)) * smoothing
    single = request.reduction == "none"
    each_loss = c.new_plain(request.outputs[0]) if single else c.vector(n, source.dtype)
    results = []
    if len(request.outputs) > 1:
        results.append((c.new_plain(request.outputs[1]), x - highest - log_sum))
    operands = [(source, (classes, 1)), (label, (1, 0))]
    rows_call(c, "cross_entropy", operands, classes, n, passes, results, [(each_loss, each)])
    if single:
        return
    mean = request.reduction == "mean"
    final = operand(0) * operand(1) if mean else operand(0)
    more = [c.constant(np.array(1.0 / n, source.dtype))] if mean else []
    loss = c.new_plain(request.outputs[0])
    reduce_to_columns(c, (1, n), [(each_loss, (n, 1))], [operand(0)], more, [loss], [final], everything=True)


def _gradient_unsuited(q: Queries, request: CrossEntropyGradient) -> str | None:
    return q.not_floats(request.log_prob, request.dloss) or q.empty(request.log_prob)


@lowers(CrossEntropyGradient, suits=_gradient_unsuited)
def cross_entropy_gradient(c: Context, request: CrossEntropyGradient) -> None:
    """One pass, from the logarithms of the probabilities; labels are checked as for the loss."""
    n, classes = c.shape(request.log_prob)
    c.check_indices(c.plain(request.labels), classes, low=0, what="label")
    smoothing = request.smoothing
    share = c.constant(np.array(1.0 / n if request.reduction == "mean" else 1.0, c.dtype(request.log_prob)))
    hot = operand(4).apply("eq", operand(1)).apply("select", 1.0 - smoothing, 0.0)
    expression = (operand(0).apply("exp") - hot - smoothing / classes) * (operand(2) * operand(3))
    operands = [
        (c.plain(request.log_prob), (classes, 1)),
        (c.plain(request.labels), (1, 0)),
        (c.plain(request.dloss), (1, 0) if request.reduction == "none" else (0, 0)),
        (share, (0, 0)),
    ]
    target = c.new_plain(request.dscores)
    rows_call(c, "cross_entropy_gradient", operands, classes, n, (), [(target, expression)])
