"""GF/s of the generated kernels, and the fraction of the multiply-add peak measured on this machine.

python benchmarks/kernels.py [--threads N] [--lanes N] [--only TEXT] [--seconds S] [--cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from onward.compile.codegen.builder import Module
from onward.compile.codegen.jit import default_jit
from onward.compile.codegen.target import Target, host_target
from onward.compile.kernels import (
    conv,
    conv_narrow,
    conv_pack,
    conv_weights,
    depthwise,
    weight_finish,
    winograd,
)
from onward.compile.kernels.dots import dots
from onward.compile.kernels.gemm import Gemm, gemm
from onward.compile.kernels.integer_rows import integer_rows
from onward.compile.kernels.integer_weights import IntegerWeights
from onward.compile.kernels.kernel import Kernel
from onward.compile.kernels.layout import Convolution, Image, oihw
from onward.compile.kernels.packed import packed_gemm
from onward.compile.kernels.panels import block_width, pack_columns, packed_size, panel_size
from onward.engine.team import Step, Steps, Team

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One kernel with its buffers, ready to run."""

    name: str
    kernel: Kernel
    values: dict[str, Array | int]
    batch: int


CONVOLUTIONS = [
    # batch, size, channels in, channels out, kernel, stride, pad, group
    ("lenet.1", 64, 28, 1, 6, 5, 1, 2, 1),
    ("lenet.2", 64, 14, 6, 16, 5, 1, 0, 1),
    ("resnet20.1", 64, 32, 16, 16, 3, 1, 1, 1),
    ("resnet20.2", 64, 16, 32, 32, 3, 1, 1, 1),
    ("resnet20.3", 64, 8, 64, 64, 3, 1, 1, 1),
    ("resnet18.stem", 4, 224, 3, 64, 7, 2, 3, 1),
    ("resnet18.1", 8, 56, 64, 64, 3, 1, 1, 1),
    ("resnet18.2 s2", 8, 56, 64, 128, 3, 2, 1, 1),
    ("resnet18.2", 8, 28, 128, 128, 3, 1, 1, 1),
    ("resnet18.3", 8, 14, 256, 256, 3, 1, 1, 1),
    ("resnet18.4", 8, 7, 512, 512, 3, 1, 1, 1),
    ("resnet50.1x1 256-64", 8, 56, 256, 64, 1, 1, 0, 1),
    ("resnet50.1x1 64-256", 8, 56, 64, 256, 1, 1, 0, 1),
    ("resnet50.1x1 1024-256", 8, 14, 1024, 256, 1, 1, 0, 1),
    ("resnet50.1x1 s2", 8, 28, 512, 1024, 1, 2, 0, 1),
    ("alexnet.1", 8, 224, 3, 64, 11, 4, 2, 1),
    ("mobilenet.dw 1", 4, 112, 96, 96, 3, 2, 1, 96),
    ("mobilenet.dw 2", 4, 56, 144, 144, 3, 1, 1, 144),
    ("mobilenet.dw 3", 4, 14, 384, 384, 3, 1, 1, 384),
    ("alexnet.2", 8, 27, 64, 192, 5, 1, 2, 1),
]


def geometry(size: int, c: int, o: int, k: int, s: int, p: int, g: int) -> Convolution:
    out = (size + 2 * p - k) // s + 1
    bare = Convolution(Image(size, size, c), Image(out, out, o), (k, k), (s, s), pads=(p, p, p, p), group=g)
    return Convolution(
        Image(size, size, c, *bare.input_halo()),
        Image(out, out, o, *bare.gradient_halo()),
        (k, k),
        (s, s),
        pads=(p, p, p, p),
        group=g,
    )


def random(n: int) -> Array:
    """n floats that start on a cache line."""
    data = np.random.default_rng(0).standard_normal(n + 32, np.float32)
    start = -data.ctypes.data % 64 // 4
    return data[start : start + n]


Maker = Callable[[], tuple[Kernel, dict[str, "Array | int"]]]


def direct(shape: Convolution, batch: int, target: Target, threads: int) -> dict[str, Maker]:
    """The kernels of one convolution by direct tiles."""
    x, y = random(batch * shape.x.size), random(batch * shape.y.size)
    order = oihw(shape.inputs, *shape.kernel)
    packed = random(conv_pack.packed_forward_size(shape, target))
    turned = random(conv_pack.packed_backward_size(shape, target))
    parts = conv_weights.partial_count(shape, target, threads)
    panels = random(parts * conv_weights.partial_size(shape, target))
    w = random(shape.weights)

    def gradient() -> tuple[Kernel, dict[str, Array | int]]:
        kernel = conv_weights.weight_gradient(shape, target)
        values: dict[str, Array | int] = {"a": x, "b": y, "c": panels, "batch": batch}
        if kernel.scratch:
            values["scratch"] = random(kernel.scratch // 4 * threads)
        return kernel, values

    return {
        "F": lambda: (conv.forward(shape, target), {"a": x, "b": packed, "c": y, "batch": batch}),
        "F pack": lambda: (conv_pack.forward_pack(shape, target, order), {"w": w, "packed": packed}),
        "BD": lambda: (conv.backward_data(shape, target), {"a": y, "b": turned, "c": x, "batch": batch}),
        "BD pack": lambda: (conv_pack.backward_data_pack(shape, target, order), {"w": w, "packed": turned}),
        "BW": gradient,
        "BW finish": lambda: (
            weight_finish.finish_weights(shape, target),
            {"c": panels, "dw": w, "parts": parts},
        ),
    }


def by_shared_vectors(shape: Convolution, batch: int, target: Target) -> dict[str, Maker]:
    """The kernels in which neighbouring pixels share a vector, where the convolution has few channels."""
    x, y = random(batch * shape.x.size), random(batch * shape.y.size)
    makers: dict[str, Maker] = {}
    if conv_narrow.narrow_suits(shape, target, backward=False):
        packed = random(conv_narrow.narrow_size(shape, target, backward=False))
        makers["F narrow"] = lambda: (
            conv_narrow.narrow_forward(shape, target),
            {"a": x, "b": packed, "c": y, "batch": batch},
        )
    if conv_narrow.narrow_suits(shape, target, backward=True):
        swapped = random(conv_narrow.narrow_size(shape, target, backward=True))
        makers["BD narrow"] = lambda: (
            conv_narrow.narrow_backward_data(shape, target),
            {"a": y, "b": swapped, "c": x, "batch": batch},
        )
    return makers


def by_winograd(shape: Convolution, batch: int, target: Target, threads: int) -> dict[str, Maker]:
    """The same by Winograd; GF/s count the multiplications it makes."""
    shape = replace(
        shape,
        x=replace(shape.x, **sides(winograd.winograd_input_halo(shape))),
        y=replace(shape.y, **sides(winograd.winograd_gradient_halo(shape))),
    )
    x, y = random(batch * shape.x.size), random(batch * shape.y.size)
    order, w = oihw(shape.inputs, 3, 3), random(shape.weights)
    packed = random(winograd.winograd_packed_size(shape, target))
    turned = random(winograd.winograd_packed_size(shape, target, backward=True))
    parts = winograd.winograd_partial_count(shape, target, threads)
    panels = random(parts * winograd.winograd_partial_size(shape, target))

    def with_scratch(kernel: Kernel, a: Array, b: Array, c: Array) -> tuple[Kernel, dict[str, Array | int]]:
        scratch = random(kernel.scratch // 4 * threads)
        return kernel, {"a": a, "b": b, "c": c, "scratch": scratch, "batch": batch}

    return {
        "F winograd": lambda: with_scratch(winograd.winograd_forward(shape, target), x, packed, y),
        "F winograd pack": lambda: (
            winograd.winograd_pack(shape, target, order),
            {"w": w, "packed": packed},
        ),
        "BD winograd": lambda: with_scratch(winograd.winograd_backward_data(shape, target), y, turned, x),
        "BW winograd": lambda: with_scratch(winograd.winograd_weight_gradient(shape, target), x, y, panels),
        "BW winograd finish": lambda: (
            winograd.winograd_finish_weights(shape, target, order),
            {"a": x, "b": y, "c": panels, "dw": w, "parts": parts, "batch": batch},
        ),
    }


def by_channel(shape: Convolution, batch: int, target: Target, threads: int) -> dict[str, Maker]:
    """Depthwise convolution."""
    x, y, w = random(batch * shape.x.size), random(batch * shape.y.size), random(shape.weights)
    partial = random(depthwise.depthwise_partial_size(shape, target, threads))
    return {
        "F": lambda: (
            depthwise.depthwise_forward(shape, target),
            {"a": x, "b": w, "c": y, "batch": batch},
        ),
        "BD": lambda: (
            depthwise.depthwise_backward_data(shape, target),
            {"a": y, "b": w, "c": x, "batch": batch},
        ),
        "BW": lambda: (
            depthwise.depthwise_weight_gradient(shape, target),
            {"a": x, "b": y, "c": partial, "batch": batch},
        ),
    }


def sides(halo: tuple[int, int, int, int]) -> dict[str, int]:
    return dict(zip(("top", "left", "bottom", "right"), halo, strict=True))


PRODUCTS = [
    # rows, columns, sum, which side is transposed, which of the sizes is the batch
    (2048, 1024, 256, "", "m"),
    (2048, 256, 1024, "", "m"),
    (2048, 256, 1024, "b", "m"),
    (2048, 256, 256, "", "m"),
    (1024, 256, 2048, "a", "k"),
    (256, 1024, 2048, "a", "k"),
    (512, 128, 3200, "a", "k"),
    (64, 128, 784, "b", "m"),
    (128, 784, 64, "a", "k"),
    (64, 64, 128, "", "m"),
    (128, 256, 256, "", "m"),
    (128, 1024, 256, "", "m"),
    (32, 512, 128, "", "m"),
    (512, 128, 32, "a", "k"),
    (32, 4096, 9216, "b", "m"),
    (64, 128, 128, "b", "m"),
    (16, 64, 4096, "b", "m"),
    (64, 64, 4096, "b", "m"),
]


def products(target: Target, threads: int) -> dict[str, Maker]:
    """Matrix products by every kernel that can make them; `+` is a right side that was packed before.

    Which of them a plan takes is decided by some of the tuning constants: the rows of one shape, side by
    side, show where each begins to pay.
    """
    makers: dict[str, Maker] = {}
    for m, n, k, transposed, batch in PRODUCTS:
        turn_a, turn_b = transposed == "a", transposed == "b"
        spec = Gemm(
            *(None if batch == "m" else m, n, None if batch == "k" else k),
            *((1, m) if turn_a else (k, 1)),
            b_k=1 if turn_b else n,
            b_column=k if turn_b else 1,
            c_row=n,
        )
        before = replace(spec, b_k=block_width(n, target), b_column=1, b_block=panel_size(n, k, target))
        matrices: dict[str, Array | int] = {
            "a": random(m * k),
            "b": random(packed_size(n, k, target)),
            "c": random(m * n),
            "batch": m if batch == "m" else k,
        }

        def ours(
            make: Callable[[Gemm, Target], Kernel],
            spec: Gemm,
            matrices: dict[str, Array | int] = matrices,
        ) -> tuple[Kernel, dict[str, Array | int]]:
            kernel = make(spec, target)
            scratch: dict[str, Array | int] = {"scratch": random(kernel.scratch // 4 * threads)}
            return kernel, matrices | (scratch if kernel.scratch else {})

        name = f"{m}x{n}x{k}{' ' if transposed else ''}{transposed}"
        makers[f"product packed {name}"] = partial(ours, packed_gemm, spec)
        makers[f"product packed+ {name}"] = partial(ours, packed_gemm, before)
        if not turn_b:
            makers[f"product in place {name}"] = partial(ours, gemm, spec)
        else:
            makers[f"product dots {name}"] = partial(ours, dots, spec)
        makers[f"product in place+ {name}"] = partial(ours, gemm, before)
        makers[f"product pack columns {name}"] = partial(packing, n, k, spec, target)
    return makers


def weights(target: Target, threads: int) -> dict[str, Maker]:
    """Products with weights in integers: widened in registers for few rows, or as panels in caches."""
    makers: dict[str, Maker] = {}
    for m in (1, 8, 16, 64):
        for bits, block in ((8, 1024), (8, 32), (4, 32)):
            kept = IntegerWeights(1024, 1024, bits, block, zeros=False)
            spec = Gemm(None, 1024, 1024, 1024, 1, 1024, 1024, weights=kept)

            def ours(
                make: Callable[[Gemm, Target], Kernel], m: int = m, spec: Gemm = spec
            ) -> tuple[Kernel, dict[str, Array | int]]:
                kernel = make(spec, target)
                values = {"a": random(m * 1024), "b": random(1 << 18), "c": random(m * 1024)}
                values |= {"scale": random(1 << 15)}
                values |= {"scratch": random(kernel.scratch // 4 * threads)} if kernel.scratch else {}
                return kernel, {**values, "batch": m}

            name = f"{m}x1024x1024 int{bits} in blocks of {block}"
            makers[f"weights rows {name}"] = partial(ours, integer_rows)
            makers[f"weights packed {name}"] = partial(ours, packed_gemm)
    return makers


def packing(n: int, k: int, spec: Gemm, target: Target) -> tuple[Kernel, dict[str, Array | int]]:
    """The kernel that packs a right side, with its buffers."""
    kernel = pack_columns(n, k, spec.b_column, spec.b_k, target)
    return kernel, {"b": random(k * n), "packed": random(packed_size(n, k, target))}


def rows(target: Target, threads: int, only: str) -> Iterator[Row]:
    """The kernels whose name contains `only`."""
    for name, batch, *sizes in CONVOLUTIONS:
        shape = geometry(*sizes)
        makers = by_channel(shape, batch, target, threads) if shape.inputs == 1 and shape.group > 1 else {}
        makers = makers or direct(shape, batch, target, threads) | by_shared_vectors(shape, batch, target)
        if winograd.winograd_suits(shape) and shape.inputs >= 16:
            makers |= by_winograd(shape, batch, target, threads)
        for direction, make in makers.items():
            if only in f"{name} {direction}":
                yield Row(f"{name} {direction}", *make(), batch)
    for name, make in (products(target, threads) | weights(target, threads)).items():
        if only in name:
            kernel, values = make()
            yield Row(name, kernel, values, int(values.get("batch", 1)))


def peak(team: Team, target: Target, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """GF/s of independent multiply-adds in registers."""
    module = Module(target)
    f = module.entry()
    count = f.load(f.arguments[0], "i64", 1)
    sink = f.load(f.arguments[0], "ptr")
    start = [f.vload(sink, 0)] * 12
    factor = f.vload(sink, target.lanes)
    acc = f.loop(
        0,
        count,
        carry=start,
        body=lambda _, c: [f.fma(a, factor, a if i % 2 else factor) for i, a in enumerate(c)],
    )
    total = acc[0]
    for a in acc[1:]:
        total = total + a
    f.vstore(total, sink, f.arguments[1] * (2 * target.lanes) + 4 * target.lanes)
    f.ret()
    trips = 20000
    data = np.zeros(4096, np.float32)
    block = np.array([data.ctypes.data, trips], np.int64)
    steps = Steps([Step(default_jit(target.lanes).address(module.text()), block.ctypes.data)])
    best = measure(team, steps, seconds, clock)[0]
    return 12 * 2 * target.lanes * trips * team.threads / best / 1e9


def measure(
    team: Team, steps: Steps, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Best and median seconds of a run."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = clock()
        team.run(steps)
        times.append(clock() - start)
    return min(times), statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lanes", type=int, default=None)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--cpu", action="store_true", help="processor time of one thread: for a busy machine")
    options = parser.parse_args()
    threads = 1 if options.cpu else options.threads
    clock = time.thread_time if options.cpu else time.perf_counter
    target = host_target(options.lanes)
    jit = default_jit(target.lanes)
    with Team(threads) as team:
        print(f"{target.cpu}, {target.lanes} lanes, {threads} threads")
        titles = ("compile ms", "best ms", "median", "GF/s", "of peak", "GB/s")
        print(f"{'kernel':<40}" + "".join(f"{title:>11}" for title in titles))
        for row in rows(target, threads, options.only):
            start = time.perf_counter()
            address = jit.address(row.kernel.ir)
            compile_time = time.perf_counter() - start
            block = row.kernel.block(
                {k: v if isinstance(v, int) else v.ctypes.data for k, v in row.values.items()}
            )
            # The peak is measured next to each kernel, as clocks and neighbours change.
            top = peak(team, target, options.seconds / 10, clock)
            best, median = measure(team, Steps([Step(address, block.ctypes.data)]), options.seconds, clock)
            top = max(top, peak(team, target, options.seconds / 10, clock))
            gf = row.kernel.flops(row.batch) / best / 1e9
            gb = row.kernel.bytes(row.batch) / best / 1e9
            print(
                f"{row.name:<40}{compile_time * 1e3:>11.0f}{best * 1e3:>11.3f}{median * 1e3:>11.3f}"
                f"{gf:>11.0f}{gf / top:>11.0%}{gb:>11.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
