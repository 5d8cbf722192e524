"""Random graphs of NNSmith with what torch computes for them, for `fuzz_models --nnsmith FOLDER` to replay.

Runs in an environment of its own (`pip install nnsmith torch onnx`), which onward is not part of:

    PYTHON benchmarks/nnsmith_graphs.py FOLDER [--seed N] [--count N] [--nodes N]

Each graph is two files, `SEED.onnx` and `SEED.npz` (inputs `in.NAME`, torch's outputs `out.NAME`), and
depends on its seed and node count alone. A graph that NNSmith or torch's exporter gives up on is counted.
"""

from __future__ import annotations

import argparse
import collections
import functools
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def main() -> int:
    """Write the graphs of a range of seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="the first graph's")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=8, help="at most, of a graph")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")

    import torch

    # NNSmith was written against the TorchScript exporter, which newer versions of torch have to be asked for
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)

    from nnsmith.abstract.extension import activate_ext
    from nnsmith.graph_gen import model_gen
    from nnsmith.materialize.onnx import ONNXModelCPU
    from nnsmith.narrow_spec import auto_opset

    operators: Any = auto_opset(ONNXModelCPU)
    activate_ext(opset=operators, factory=None)
    lost: collections.Counter[str] = collections.Counter()
    written = 0
    for seed in range(options.seed, options.seed + options.count):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002, the stream that NNSmith draws from
        torch.manual_seed(seed)
        try:
            made = model_gen(
                opset=operators,
                method="symbolic-cinit",
                seed=seed,
                max_nodes=options.nodes,
                max_elem_per_tensor=4096,
                timeout_ms=10000,
            )
            model = ONNXModelCPU.from_gir(made.make_concrete())
            model.refine_weights()
            oracle = model.make_oracle()
        except Exception as error:  # noqa: BLE001, the generator's own failures are not what is looked for
            lost[type(error).__name__] += 1
            continue
        arrays = {f"in.{k}": v for k, v in oracle.input.items()}
        arrays |= {f"out.{k}": v for k, v in oracle.output.items()}
        np.savez(options.folder / f"{seed}.npz", **arrays)
        (options.folder / f"{seed}.onnx").write_bytes(model.native_model.SerializeToString())
        written += 1
    print(f"{written} graphs, {sum(lost.values())} given up {dict(lost)}")
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
