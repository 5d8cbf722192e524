"""Torch's side of `benchmarks.epochs`; runs in the interpreter that has torch.

python -m benchmarks.suite.torch_epochs FILE.npz BATCH THREADS WEIGHT_DECAY

Prints a line of JSON with `seconds` of training and `accuracy` on the test part.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from benchmarks.suite.torch_networks import convert, lenet5
from torch.nn import functional


def _run(
    found: dict[str, np.ndarray], batch: int, decay: float, last: bool, most: int | None
) -> tuple[float, float]:
    """Seconds of training, and accuracy on the test part; `most` updates at most."""
    layout = torch.channels_last if last else torch.contiguous_format
    weights = {k.removeprefix("weight:"): v for k, v in found.items() if k.startswith("weight:")}
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in convert("lenet5", weights).items()}
    tensors = {
        k: (t.to(memory_format=layout) if t.ndim == 4 else t).requires_grad_() for k, t in tensors.items()
    }
    x, y = torch.from_numpy(found["training:x"]), torch.from_numpy(found["training:y"])
    x = x.to(memory_format=layout)
    optimizer = torch.optim.AdamW(list(tensors.values()), lr=0.0, weight_decay=decay, fused=True)
    rates = found["rates"].tolist()[:most]
    generator = torch.Generator().manual_seed(0)
    order: list[torch.Tensor] = []
    total = 0.0
    started = time.perf_counter()
    for rate in rates:
        if not order:
            order = list(torch.randperm(len(x), generator=generator).split(batch))
        indices = order.pop(0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        logits = lenet5(tensors, x[indices], True)
        loss = functional.cross_entropy(logits, y[indices])
        loss.backward()
        optimizer.step()
        total += loss.item()
    seconds = time.perf_counter() - started
    with torch.inference_mode():
        test = torch.from_numpy(found["test:x"]).to(memory_format=layout)
        right = lenet5(tensors, test, False).argmax(1) == torch.from_numpy(found["test:y"])
    return seconds, right.double().mean().item()


def main() -> None:
    """Train once, in the faster layout."""
    file, batch, threads, decay = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(threads)
    found = dict(np.load(file))
    for last in (False, True):
        _run(found, batch, decay, last, 5)
    short = [_run(found, batch, decay, last, 20)[0] for last in (False, True)]
    seconds, accuracy = _run(found, batch, decay, short[1] < short[0], None)
    print(json.dumps({"seconds": seconds, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
