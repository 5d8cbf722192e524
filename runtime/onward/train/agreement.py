"""What has to be equal: between a checkpoint and the run that goes on from it, and between ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from onward.autodiff import TrainingStep
from onward.compile.codegen.target import host_target
from onward.errors import ConfigError
from onward.model import current_versions
from onward.parallel import Group

__all__ = ["check_ranks", "rounding_alike", "structure_of"]


def structure_of(step: TrainingStep) -> str:
    """A digest of a step's nodes, their attributes, and its constants; its state has no part in it."""
    structure = hashlib.sha256()
    for node in step.model.graph:
        structure.update(
            f"{node.domain}:{node.op_type}{[v.name if v else None for v in node.inputs]}".encode()
        )
        structure.update(repr(sorted((k, str(a.value)) for k, a in node.attributes.items())).encode())
    for name, value in step.model.graph.initializers.items():
        if name not in step.bindings and value.const_value is not None:
            structure.update(f"{name}:".encode() + value.const_value.tobytes())
    return structure.hexdigest()


def rounding_alike(group: Group, threads: int | None) -> bool:
    """Whether all ranks come to the same bits from the same numbers, as in an update from summed gradients:
    they have one kind of processor, whose kernels have one order of sums, and as many threads.
    """
    return len(set(group.gather((str(host_target()), threads)))) == 1


def check_ranks(group: Group, own: Mapping[str, Any], batch_size: int) -> None:
    """Refuse ranks that differ, and batches that are too small for them.

    Args:
        group: all ranks call this.
        own: what has to be equal on all of them, by what it is called; versions are added.
        batch_size: samples of all ranks together.

    Raises:
        ConfigError: it names what differs, and where.
    """
    versions = {f"the version of {name}": version for name, version in current_versions().items()}
    group.check_same({**versions, **own})
    if batch_size < group.size:
        raise ConfigError(
            f"a batch of {batch_size} samples leaves nothing to do for some of {group.size} "
            f"ranks; make batches larger, at least {group.size}, or start fewer ranks"
        )
