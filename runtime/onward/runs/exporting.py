"""Writes what a run has trained: weights, preparation and where they come from in one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from onward.data import Dataset, NumberPreparation, Preparation
from onward.errors import ConfigError
from onward.graph import TensorSpec, spec_of
from onward.model import Provenance, current_versions, write_adapter
from onward.passes import open_adapters
from onward.runs.adapters import adapter_matrices, check_merged
from onward.runs.config import RunConfig
from onward.runs.events import Exported
from onward.runs.preparation import feeds_of, input_names, metadata_of
from onward.runs.tables import columns_text
from onward.runs.telling import Listener
from onward.train import Trainer
from onward.train.task import Task
from onward.verify import Report, export

__all__ = ["export_run", "now"]

_SAMPLES = 8
_RECORDS = ("output", "overwrite", "checkpoint", "log", "parallel", "prefetch", "workers", "shard")
"""Where a run is recorded, and who reads its data, changes nothing in the model: not written into it."""


def export_run(
    config: RunConfig,
    trainer: Trainer,
    task: Task,
    preparation: Preparation,
    sample: Dataset,
    digest: Callable[[Preparation], str],
    figures: Mapping[str, float],
    output: Path,
    tell: Listener,
) -> Report:
    """Write the trained model, once onnxruntime agrees with it, and tell of it.

    Args:
        config: of the run.
        trainer: with the trained weights.
        task: of the first output.
        preparation: as it was fitted.
        sample: some of the data as they are read.
        digest: of all of them, for a preparation by the model's input names.
        figures: for the metadata.
        output: the file.
        tell: it is told what was written.

    Raises:
        VerificationError: onnxruntime differs; nothing is written.
        StorageError: the file cannot be written.
    """
    model = trainer.model
    initializers = model.graph.initializers
    takes_now = [spec_of(v) for v in model.graph.inputs if v.name not in initializers]
    names = [spec.name for spec in takes_now]
    whole = sample
    if not sample.whole:
        sample = sample.take(range(min(_SAMPLES, len(sample))))
    encoded = sample if sample.table else Preparation(text=preparation.text).apply(sample)
    graph = preparation.renamed(
        input_names(encoded, names) if preparation.table is None else {preparation.table.input: names[0]}
    )
    inside = config.preparation
    record = {key: value for key, value in config.plain().items() if key not in _RECORDS}
    provenance = Provenance(
        data_hash=f"sha256:{digest(graph)}",
        created=now(),
        split_seed=config.data.split_seed,
        configuration={**record, "task": whole.task, "targets": task.kind, "class_axis": task.axis},
        metrics=figures,
        versions=current_versions(),
        class_names=whole.classes,
        **metadata_of(graph, inside=inside),
    )
    if inside and graph.table is not None:
        inputs = dict(graph.table.raw(sample))
        specs = [
            TensorSpec(name, dtype, ("N", *inputs[name].shape[1:]))
            for name, dtype in graph.table.takes.items()
        ]
    elif inside:
        specs = [_raw_spec(spec, graph.numbers.get(spec.name)) for spec in takes_now]
        inputs = feeds_of(encoded, specs)
    else:
        specs = takes_now
        inputs = feeds_of(preparation.apply(sample), specs)
    adapter = None
    if config.lora is not None:
        check_merged(trainer, feeds_of(preparation.apply(sample), takes_now))
        if config.lora.export == "adapter":
            model, adapter = open_adapters(trainer.adapted), output.with_suffix(".onnx_adapter")
    report = export(
        model, output, provenance=provenance, preparation=graph if inside else None, inputs=inputs
    )
    assert report is not None
    notes = _notes(graph, inside)
    if adapter is not None:
        matrices = adapter_matrices(trainer.adapted)
        write_adapter(adapter, matrices)
        notes += (
            f"{output} is the file that was adapted, with inputs for an adapter; what was learned is in "
            f"{adapter} ({sum(a.size for a in matrices.values()):,} numbers), which onnxruntime takes by "
            f"RunOptions.add_active_adapter; `onward export {output} FILE --adapter {adapter}` merges both",
        )
    takes = tuple(map(str, specs))
    if inside and graph.table is not None and not graph.table.matrix:
        takes = (f"{columns_text(len(specs))} [N, 1]: {', '.join(spec.name for spec in specs)}",)
    tell(Exported(output, report, takes, notes))
    return report


def _raw_spec(spec: TensorSpec, each: NumberPreparation | None) -> TensorSpec:
    """An input as the exported graph takes it."""
    if each is None:
        return spec
    if each.spectrogram is not None:
        return TensorSpec(spec.name, each.dtype, ("N", each.spectrogram.samples))
    return replace(spec, dtype=each.dtype)


def _notes(preparation: Preparation, inside: bool) -> tuple[str, ...]:
    notes = []
    if preparation.text is not None:
        notes.append(
            "the graph takes token numbers: `onward predict`, `evaluate` and `serve` encode texts with what "
            "the file carries; other runtimes have to (onward.preparation and onward.vocabulary in its "
            "metadata)"
        )
    changed = any(not each.empty for each in preparation.numbers.values())
    if not inside and (changed or preparation.table is not None):
        notes.append(
            "the graph is the bare network: `onward predict` and `evaluate` prepare inputs first; servers "
            "and other runtimes have to (onward.preparation in its metadata)"
        )
    return tuple(notes)


def now() -> datetime:
    stamp = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not stamp:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(stamp), UTC)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"SOURCE_DATE_EPOCH is {stamp!r}; it must be seconds since 1970") from None
