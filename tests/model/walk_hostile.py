"""Open files of `hostile`, each in a process of its own with bounded memory and time; a line of JSON each.

python -m tests.model.walk_hostile FOLDER GROUP ENGINE[,ENGINE]
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tests.model.hostile import files

from onward.engine import Session
from onward.errors import OnwardError
from onward.graph.run_limits import run_limits
from onward.model import inspect_model, load

SECONDS = 100
"""Of a file; machines of tests are slow, so that this says of nothing but hanging."""

MEMORY = 6 << 30


def feeds(model: onnx.ModelProto, session: Session) -> dict[str, Any]:
    """Ones of the shapes that the file says, those of extent 0 included; nothing where they are too large."""
    said = {
        v.name: [d.dim_value if d.HasField("dim_value") else 2 for d in v.type.tensor_type.shape.dim]
        for v in model.graph.input
    }
    given: dict[str, Any] = {}
    for x in session.inputs:
        shape = [
            d if isinstance(d, int) else max(0, s) for d, s in zip(x.shape or (), said[x.name], strict=False)
        ]
        if x.dtype is not None and x.dtype != object and np.prod(list(map(float, shape))) < 1e7:
            given[x.name] = np.ones(shape, x.dtype)
    return given


def told(part: Callable[[], Any]) -> str:
    """What becomes of a part of the walk."""
    try:
        return f"ok {part()}"
    except OnwardError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:  # noqa: BLE001, what is not ours is the finding
        return f"FAULT {type(error).__name__}: {error}"


def walk(path: Path, engines: list[str]) -> dict[str, str]:
    """Load, inspect and run a file."""
    models: list[Any] = []
    found = {"load": told(lambda: models.append(load(path)))}
    if not models:
        return found
    found["inspect"] = told(lambda: "; ".join(inspect_model(models[0]).leniencies))

    def run(engine: Any) -> str:
        # lower than what stands: how a loop is refused does not depend on when
        with (
            run_limits(max_seconds=4, max_open_seconds=1, max_open_iterations=1 << 12),
            Session(models[0], engine=engine, threads=1) as session,
        ):
            made = session.run(feeds(onnx.load(path, load_external_data=False), session))
        return ", ".join(
            f"{name} {list(x.shape)} {x.reshape(-1)[:3].tolist()}" if isinstance(x, np.ndarray) else f"{name}"
            for name, x in made.items()
        )

    for engine in engines:
        found[engine] = told(lambda engine=engine: run(engine))  # type: ignore[misc]
    return found


def in_a_process(path: Path, engines: list[str]) -> dict[str, str]:
    """`walk`, and how its process ended where it did not come back."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(SECONDS)
        with os.fdopen(writing, "w") as out:
            json.dump(walk(path, engines), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as source:
        said = source.read()
    _, status = os.waitpid(child, 0)
    return (
        dict(json.loads(said))
        if said
        else {"process": f"FAULT ended with {os.waitstatus_to_exitcode(status)}"}
    )


def main() -> None:
    """What the command line says."""
    folder, group, engines = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
    (folder / "short.bin").write_bytes(bytes(8))
    (folder / "long.bin").write_bytes(bytes(40))
    for name, data in files(group).items():
        path = folder / "model.onnx"
        path.write_bytes(data)
        began = time.monotonic()
        found = in_a_process(path, engines)
        print(json.dumps([name, round(time.monotonic() - began, 2), found]), flush=True)


if __name__ == "__main__":
    main()
