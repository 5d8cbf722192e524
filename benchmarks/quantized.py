"""Quantised networks beside onnxruntime's and our own float32: one table, ratios of medians.

python -m benchmarks.quantized [--batch N] [--threads N] [--rounds N] [--cpu] [NETWORK ...]

`resnet18` and `transformer_encoder` are quantised here by onnxruntime.quantization (QDQ, activations uint8
by range, weights int8 by channel) from random weights and data. `bert_weights_L` is an encoder of BERT's
kind and MiniLM's size for L positions with int8 weights alone (`onward.passes.quantize_weights`),
`bert_blocks_L` has them in blocks of 32, `bert_int4_L` is of int4 in such blocks; 1 position is what
decoding a token multiplies; `bert_dynamic_L` has DynamicQuantizeLinear and MatMulInteger. Those with weights
alone have two lines: products in float32, and with `accuracy_level=4`, which
rounds activations to 8 bits as onnxruntime does to such files unless told otherwise. "kept" is what a
session keeps of weights, beside that of the float32 session.

The runs take turns; onnxruntime has all optimisations and as many intra-op threads as we have. `--cpu`
compares processor time, which other processes disturb less. Goals: at most 1.0 of onnxruntime's time, and
0.5 of our own float32 where activations are integers too.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

from onward.engine import CompileOptions, Session
from onward.engine.compiled import CompiledEngine
from onward.model import load, save
from onward.nn import zoo
from onward.passes import quantize_dynamic, quantize_weights, to_inference

NETWORKS = (
    "resnet18",
    "transformer_encoder",
    *(f"bert_weights_{length}" for length in (1, 8, 64, 128, 512)),
    *(f"bert_{kind}_{length}" for kind in ("blocks", "int4") for length in (1, 64)),
    *(f"bert_dynamic_{length}" for length in (8, 64)),
)
_BERT = {"size": 384, "layers": 6, "heads": 12, "hidden": 1536}
_WEIGHTS: dict[str, dict[str, Any]] = {"weights": {}, "blocks": {"block": 32}, "int4": {"bits": 4}}
_LEVELS = {"": CompileOptions(), " level 4": CompileOptions(accuracy_level=4)}
_CALIBRATION = 4


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Random batches, the same at every run."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _feeds(session: Session, batch: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for spec in session.inputs:
        shape = [batch, *(int(d) for d in (spec.shape or ())[1:] if isinstance(d, int))]
        floats = spec.dtype.kind == "f"
        feeds[spec.name] = (rng.standard_normal(shape) if floats else rng.integers(1, 1000, shape)).astype(
            spec.dtype
        )
    return feeds


def _files(network: str, batch: int, folder: Path) -> tuple[Path, Path]:
    """The float file and the quantised one."""
    plain, ready, quantised = (folder / f"{network}.{part}.onnx" for part in ("float", "ready", "int8"))
    if network.startswith("bert_"):
        _, kind, length = network.split("_")
        model = to_inference(zoo.build("transformer_encoder", **_BERT, length=int(length)).model)
        save(model, plain)
        made = quantize_dynamic(model) if kind == "dynamic" else quantize_weights(model, **_WEIGHTS[kind])
        save(made, quantised)
        return plain, quantised
    save(to_inference(zoo.build(network).model), plain)
    session = Session(load(plain))
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(quantised),
        _Reader([_feeds(session, batch, i) for i in range(_CALIBRATION)]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return plain, quantised


def _turns(
    runs: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median milliseconds of each, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            begin = clock()
            run()
            times[name].append(clock() - begin)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def _kept(path: Path, feeds: dict[str, Any], threads: int, options: CompileOptions) -> int:
    """Bytes of weights that a session keeps: those of the file, and what a plan packed."""
    engine = CompiledEngine(load(path), threads=threads, options=options)
    plan = engine.plan({name: x.shape for name, x in feeds.items()})
    assert plan is not None
    found = plan.spec.kept_bytes + sum(a.nbytes for a in engine.fixed.values())
    engine.close()
    return found


def measure(
    network: str, batch: int, threads: int, rounds: int, clock: Callable[[], float]
) -> list[tuple[str, dict[str, float], float, float]]:
    """By level: milliseconds by engine, the largest difference from onnxruntime's output, and share kept."""
    with tempfile.TemporaryDirectory() as name:
        plain, quantised = _files(network, batch, Path(name))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        peer = ort.InferenceSession(str(quantised), options, providers=["CPUExecutionProvider"])
        floats = Session(load(plain), threads=threads)
        feeds = _feeds(floats, batch, 99)
        runs: dict[str, Callable[[], object]] = {
            "onnxruntime": lambda: peer.run(None, feeds),
            "float32": lambda: floats.run(feeds),
        }
        kind = network.removeprefix("bert_").split("_")[0]
        levels = _LEVELS if kind in _WEIGHTS else {"": CompileOptions()}
        for level, chosen in levels.items():
            ours = Session(load(quantised), threads=threads, options=chosen)
            runs[f"int8{level}"] = functools.partial(ours.run, feeds)
        want = peer.run(None, feeds)[0]
        found = _turns(runs, rounds, clock)
        before = _kept(plain, feeds, threads, CompileOptions())
        lines = []
        for level, chosen in levels.items():
            got = next(iter(dict(runs[f"int8{level}"]()).values()))  # type: ignore[call-overload]
            apart = float(np.abs(got - want).max() / np.abs(want).max())
            share = _kept(quantised, feeds, threads, chosen) / before
            lines.append((network + level, {**found, "int8": found[f"int8{level}"]}, apart, share))
        return lines


def _say_processor() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    has = "has" if "avx512_vnni" in flags or "avx_vnni" in flags else "has no"
    print(f"the processor {has} VNNI; load {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Print a line a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    _say_processor()
    logging.disable(logging.WARNING)
    clock = time.process_time if options.cpu else time.perf_counter
    print(f"{'ms':26}   int8   onnxruntime   our float32   of theirs   of float32   apart    kept")
    for network in options.networks:
        for line, ms, apart, kept in measure(network, options.batch, options.threads, options.rounds, clock):
            print(
                f"{line:26} {ms['int8']:6.2f} {ms['onnxruntime']:13.2f} {ms['float32']:13.2f} "
                f"{ms['int8'] / ms['onnxruntime']:11.2f} {ms['int8'] / ms['float32']:12.2f} "
                f"{apart:7.0e} {kept:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
