"""The whole way: define, train, measure, export, verify, serve, predict. Run by `make demo`.

Trains LeNet-5 on scikit-learn's digits, checks the result against onnxruntime forward and backward, serves it
from a process of its own and asks it about every test image, each answer computed by both engines. Ends with
exit code 1 where a step fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from onward import data, model, nn, train, verify
from onward.engine import Session
from onward_client import Client

SEED = 0
EPOCHS = 12
BATCH = 32
REQUEST = 30
NEEDED = 0.98

console = Console()


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what happens and how long it took."""
    console.rule(f"[bold]{title}")
    started = time.perf_counter()
    yield
    print(f"({time.perf_counter() - started:.1f} s)", flush=True)


def require(condition: bool, text: str) -> None:
    """End the demo where something does not hold."""
    if not condition:
        print(f"FAILED: {text}", file=sys.stderr)
        raise SystemExit(1)


def show_measures(trainer: train.Trainer, test: data.Dataset) -> dict[str, float]:
    """Print figures on the test part; returns the averages."""
    results = trainer.evaluate(test)
    table = Table(title=f"Test part: {len(test)} images that training never saw")
    for title in ("class", "precision", "recall", "F1"):
        table.add_column(title, justify="right")
    scores = [np.asarray(results[f"{name}_per_class"]) for name in ("precision", "recall", "f1")]
    for i, name in enumerate(test.classes or ()):
        table.add_row(name, *(f"{score[i]:.4f}" for score in scores))
    console.print(table)
    print("confusion matrix, rows are the true digits:")
    print(np.asarray(results["confusion_matrix"]))
    averages = {name: float(results[name]) for name in ("loss", "accuracy", "precision", "recall", "f1")}
    print("  ".join(f"{name} {value:.4f}" for name, value in averages.items()))
    return averages


@contextmanager
def server(repository: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`python -m onward_server` on a free port; gives its address and process."""
    command = [sys.executable, "-m", "onward_server", "--repository", str(repository)]
    command += ["--listen", "127.0.0.1:0", "--cross-check", "every", "--on-mismatch", "fail"]
    process = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        require(bool(line), "the server did not start")
        yield json.loads(line)["address"], process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def main() -> None:
    """Every step in order."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="onward-demo-") as folder:
        path = Path(folder) / "lenet5" / "1" / "model.onnx"
        path.parent.mkdir(parents=True)

        with step("Data and network"):
            digits = data.load_digits(image_size=28, raw=True)
            raw = data.split(digits, (0.8, 0.0, 0.2), seed=SEED)
            preparation = data.Preparation.fit(raw.train)
            parts = raw.map(preparation.apply)
            assert raw.test is not None
            assert parts.test is not None
            network = nn.zoo.lenet5(seed=SEED)
            network.summary().show()
            print(f"{len(parts.train):,} images to train on, {len(parts.test):,} to test")

        with step("Train"):
            trainer = train.Trainer(
                network,
                loss="cross_entropy",
                optimizer=train.AdamW(learning_rate=0.003, weight_decay=0.02),
                schedule=train.Cosine(warmup=40),
                metrics=[
                    "accuracy",
                    "precision",
                    "recall",
                    "f1",
                    "precision_per_class",
                    "recall_per_class",
                    "f1_per_class",
                    "confusion_matrix",
                ],
                seed=SEED,
            )
            loader = data.Loader(
                parts.train, BATCH, SEED, augment=data.parse_augmentation("shift=2,rotate=10")
            )
            quiet = not sys.stdout.isatty()
            trainer.fit(loader, epochs=EPOCHS, callbacks=[train.EpochLines()] if quiet else [])

        with step("Measure"):
            averages = show_measures(trainer, parts.test)
            require(averages["accuracy"] >= NEEDED, f"the test accuracy is below {NEEDED:.0%}")

        with step("Export, compared with onnxruntime before it is written"):
            provenance = model.Provenance(
                data_hash=f"sha256:{digits.digest()}",
                created=datetime.now(UTC),
                split_seed=SEED,
                configuration={"epochs": EPOCHS, "batch_size": BATCH, "optimizer": repr(trainer.optimizer)},
                metrics=averages,
                versions=model.current_versions(),
                class_names=digits.classes,
            )
            # the file takes pixels as they are in image files: bytes
            images = raw.test.inputs["image"]
            print(
                verify.export(
                    trainer.model,
                    path,
                    provenance=provenance,
                    preparation=preparation.renamed({"image": "input"}),
                    inputs={"input": images},
                )
            )

        with step("Verify against onnxruntime, forward and backward"):
            exported = model.load(path)
            for report in (
                verify.compare(exported, samples=3),
                verify.compare_training(exported, optimizer=train.AdamW(), steps=3),
            ):
                print(report)
                require(report.passed, "the engines disagree")

        with step("Serve, and predict through the client"), server(path.parents[2]) as (address, process):
            expected = Session(exported).run({"input": images})["output"]
            with Client(address) as client:
                require(client.server_ready(), "the server is not ready")
                print(client.metadata("lenet5"))
                answers = []
                for i in range(0, len(images), REQUEST):
                    result = client.infer("lenet5", {"input": images[i : i + REQUEST]})
                    require(result.parameters["cross_check"] == "passed", "an answer was not cross-checked")
                    answers.append(result.outputs["output"])
                checks = client.cross_checks("lenet5")[0]
            served = np.concatenate(answers)
            right = int((served.argmax(axis=1) == parts.test.targets).sum())
            print(
                f"{len(answers)} requests, {len(served)} predictions, {right} right; {checks.checks} answers "
                f"checked by both engines, {checks.passed} passed, {checks.failed} failed, "
                f"largest difference {checks.max_absolute_error:.2g}"
            )
            require(checks.checks == len(answers) and checks.failed == 0, "not every answer was checked")
            require(np.allclose(served, expected, rtol=1e-4, atol=1e-5), "served and local answers differ")
            process.terminate()
            code = process.wait(timeout=60)
            print(f"the server stopped with exit code {code}")
            require(code == 0, "the server did not stop gracefully")

    console.rule("[bold green]Done")
    print(f"test accuracy {averages['accuracy']:.4f}; {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
