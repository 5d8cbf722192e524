"""Run on ranks: an epoch of networks of the zoo, whose weights rank 0 writes and all others have too."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tests.ops.harness import in_double
from tests.verify.test_zoo_training import SMALL

from onward.graph import Array
from onward.nn import zoo
from onward.parallel import Communicator, Group, world
from onward.train import SGD, Trainer

SAMPLES, BATCH = 22, 7
"""The last batch has one sample: one of two ranks has none of it."""


def normalized(name: str) -> bool:
    """Whether a network has batch normalization."""
    return any(node.op_type == "BatchNormalization" for node in zoo.build(name, **SMALL[name]).model.graph)


def epoch(name: str, ranks: Communicator | None, *, double: bool, moved: int = 0) -> dict[str, Array]:
    """The weights after an epoch, batch normalization by the whole batch.

    Args:
        name: of the network.
        ranks: None: one process.
        double: compute in float64. In float32 rounding alone drives the weights of deep normalised networks
            apart: see `test_a_synchronised_step_is_that_of_one_process`.
        moved: where it is not 0, each number of the input is its upper or lower neighbour, as this seed says.
    """
    model: Any = zoo.build(name, **SMALL[name])
    if double:
        model, _ = in_double(model.model, {})
    trainer = Trainer(
        model,
        "cross_entropy",
        SGD(learning_rate=1e-3, momentum=0.9),
        threads=1,
        parallel=ranks,
        bucket_bytes=1 << 14,
        synchronise=ranks is not None and normalized(name),
    )
    rng = np.random.default_rng(0)
    (spec,) = trainer.inputs
    shape = (SAMPLES, *(d for d in spec.shape[1:] if isinstance(d, int)))
    integers = np.dtype(spec.dtype).kind in "iu"
    x = rng.integers(0, 50, shape) if integers else rng.standard_normal(shape)
    x, y = x.astype(spec.dtype), rng.integers(0, 2, SAMPLES)
    if moved:
        up = np.random.default_rng(moved).random(shape) < 0.5
        x = np.where(up, np.nextafter(x, np.inf), np.nextafter(x, -np.inf))
    trainer.fit((x, y), batch_size=BATCH, epochs=1, progress=False)
    return trainer.weights()


def main(folder: Path, names: list[str]) -> None:
    """Train each of them."""
    ranks = world()
    group = Group(ranks)
    for name in names:
        for double in (False, True):
            weights = epoch(name, ranks, double=double)
            digest = hashlib.sha256(b"".join(weights[key].tobytes() for key in sorted(weights))).hexdigest()
            group.check_same({f"the weights of {name}": digest})
            if ranks.rank == 0:
                np.savez(folder / f"{name}.{'double' if double else 'single'}.npz", **weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
