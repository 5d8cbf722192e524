"""What kernels declare about their slots is what they do; a declaration turned round is found out.

Every kernel that a test of this folder runs is checked in `conftest.py`; here are those without other tests.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onward.compile.codegen.target import Target
from onward.compile.kernels import depthwise
from onward.compile.kernels.batched_update import batched_update
from onward.compile.kernels.element import Element, contiguous, element
from onward.compile.kernels.embedding import gather_rows, scatter_rows
from onward.compile.kernels.expression import operand
from onward.compile.kernels.gemm import Gemm, gemm
from onward.compile.kernels.kernel import Access, Kernel
from onward.compile.kernels.layout import Convolution, Image, oihw
from onward.compile.kernels.local_response import Response, response_backward, response_forward
from onward.compile.kernels.packed import packed_gemm
from onward.compile.kernels.panels import packed_size
from onward.compile.kernels.philox import Dropout, dropout
from onward.compile.kernels.recurrent import recurrent
from onward.compile.kernels.recurrent_frame import GATES, Cell
from onward.compile.kernels.recurrent_grad import CellGradient, partial_sums, recurrent_gradient
from onward.compile.kernels.reduce import partial_size
from onward.compile.kernels.rows import Rows, rows_kernel
from onward.compile.kernels.scalars import adam_factors

RNG = np.random.default_rng(3)


def floats(*shape: int):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("how", ["plain", "no bias", "lens", "sequence", "features", "inference"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRU before", "RNN"])
def test_recurrent(kind: str, how: str, run, target: Target) -> None:
    before = kind == "GRU before"
    kind = kind.split()[0]
    time, batch, size, features = 3, 4, 9, 5
    gates = GATES[kind]
    states = ("h", "c") if kind == "LSTM" else ("h",)
    trained = how != "inference"
    cell = Cell(
        kind=kind,
        size=size,
        row=gates * size,
        state_row=size,
        activations={"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}[kind],
        kept=trained,
        trained=trained,
        features=features if how == "features" else 0,
        bias=how != "no bias",
        lens=how == "lens",
        peepholes=kind == "LSTM" and how == "plain",
        initial=(True,) * len(states) if how == "plain" else (False,) * len(states),
        sequence=how == "sequence",
        before_reset=before,
    )
    values = {
        "gates": floats(time, batch, gates * size),
        "r": floats(packed_size(gates * size, size, target)),
        "rh": floats(packed_size(size, size, target)),
        "x": floats(time, batch, features),
        "w": floats(packed_size(gates * size, features, target)),
        "bias": floats(2 * gates * size),
        "p": floats(3 * size),
        "lens": np.array([3, 1, 2, 3], np.int32),
        "extra": floats(time, batch, size),
        "y": floats(time, batch, size),
        "y_time": batch * size,
        "y_row": size,
        "time": time,
        "batch": batch,
        **{s: floats(time + 1, batch, size) for s in states},
        **{f"{s}0": floats(batch, size) for s in states},
    }
    kernel = recurrent(cell, target)
    run(kernel, target, {name: values[name] for name in kernel.slots})
    if not trained:
        return
    sums = partial_size(partial_sums(cell), target, 2)
    values |= {
        "r": floats(packed_size(size, gates * size, target)),
        "dy": floats(time, batch, size),
        "back": floats(batch, size),
        "sums": floats(2 * sums),
        **{f"d{s}": floats(batch, size) for s in states},
        **{f"d{s}_last": floats(batch, size) for s in states},
    }
    last = (True,) * len(states)
    backward = recurrent_gradient(CellGradient(cell, how == "sequence", last, how != "no bias"), target)
    run(backward, target, {name: values[name] for name in backward.slots})


def test_local_response(run, target: Target) -> None:
    image = Image(2, 3, 10)
    forward = response_forward(Response((image,) * 2, 5, 1e-4, 0.75, 1.0), target)
    run(forward, target, {"x": floats(2, 2, 3, 10), "y": floats(2, 2, 3, 10), "batch": 2})
    backward = response_backward(Response((image,) * 3, 5, 1e-4, 0.75, 1.0), target)
    run(backward, target, {**{n: floats(2, 2, 3, 10) for n in ("dy", "x", "dx")}, "batch": 2})


def test_dropout(run, target: Target) -> None:
    spec = Dropout((6,), (6, 1), (6, 1), (6, 1), 0.5, 7)
    numbers = {"seed": np.array([3]), "step": np.array([5])}
    run(dropout(spec, target), target, {"x": floats(5, 6), "y": floats(5, 6), **numbers, "batch": 5})


def test_rows_of_a_table(run, target: Target) -> None:
    index = np.array([1, -1, 0, 1])
    values = {"table": floats(3, 21), "index": index, "y": floats(4, 21), "batch": 4}
    run(gather_rows(3, 21, target), target, values)
    values = {"dy": floats(4, 21), "index": index, "dtable": floats(3, 21), "batch": 4}
    run(scatter_rows(3, 21, target), target, values)


def test_rows(run, target: Target) -> None:
    line = contiguous((21,))
    largest, total = operand(2), operand(3)
    shifted = (operand(0) - largest).apply("exp")
    spec = Rows(21, (line,), (("max", operand(0), None), ("sum", shifted, None)), ((line, shifted / total),),
                (("float32", total),))  # fmt: skip
    values = {"x0": floats(5, 21), "y0": floats(5, 21), "r0": floats(5), "batch": 5}
    run(rows_kernel(spec, target), target, values)


def test_scalars(run, target: Target) -> None:
    values = {"learning_rate": floats(1), "t": np.array([3]), "y": floats(3)}
    run(adam_factors(0.9, 0.999, 0.01, target), target, values)
    wide = {"learning_rate": np.array([0.1]), "t": np.array([3]), "y": np.zeros(3)}
    run(adam_factors(0.9, 0.999, 0.01, target, "float64"), target, wide)


def _cases(target: Target) -> dict[str, tuple[Kernel, dict[str, object]]]:
    line = contiguous(())
    pair = Element((), (line, line), (line,), (operand(0) * operand(1),))
    row = {"x0 0": floats(7), "x1 0": floats(7), "y0 0": floats(7)}
    more = {"x0 1": floats(9), "x1 1": floats(9), "y0 1": floats(9)}
    product = Gemm(m=5, n=6, k=300, a_row=300, a_k=1, b_k=6, c_row=6)
    operands = {"a": floats(5, 300), "b": floats(300, 6), "c": floats(5, 6), "batch": 1}
    image = Image(3, 3, 20)
    conv = Convolution(image, image, (1, 1), group=20)
    finish = depthwise.depthwise_finish_weights(conv, target, oihw(1, 1, 1))
    sums = depthwise.depthwise_partial_size(conv, target, 3)
    return {
        "element": (element(pair, target), {"x0": floats(7), "x1": floats(7), "y0": floats(7), "batch": 7}),
        "batched update": (
            batched_update(pair, 2, target),
            {"rows": 2, "end 0": 7, **row, "end 1": 16, **more},
        ),
        "product": (gemm(product, target), operands),
        "added product": (gemm(replace(product, accumulate=True), target), operands),
        "packed product": (packed_gemm(product, target), operands),
        "finish": (finish, {"c": floats(sums), "dw": floats(20), "parts": 3}),
        "indices": (
            scatter_rows(3, 21, target),
            {"dy": floats(4, 21), "index": np.array([1, -1, 0, 1]), "dtable": floats(3, 21), "batch": 4},
        ),
    }


@pytest.mark.parametrize(
    "name", ["element", "batched update", "product", "added product", "packed product", "finish", "indices"]
)
def test_every_declaration_turned_round_is_found(name: str, run, target: Target) -> None:
    kernel, values = _cases(target)[name]
    run(kernel, target, values)
    for i, parameter in enumerate(kernel.parameters):
        for access in Access:
            if access is parameter.access:
                continue
            turned = [*kernel.parameters]
            turned[i] = replace(parameter, access=access)
            with pytest.raises(AssertionError, match=parameter.name):
                run(replace(kernel, parameters=tuple(turned)), target, values)
