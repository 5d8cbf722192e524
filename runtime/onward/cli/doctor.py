"""`onward doctor`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, final

import typer

__all__ = ["Finding", "command"]

_NEEDED = ("numpy", "onnx", "onnx-ir", "onnxruntime", "llvmlite", "ml_dtypes", "pydantic", "typer", "rich")
_EXTRAS = {
    "server": ("grpcio", "protobuf", "aiohttp", "prometheus-client"),
    "data": ("pillow", "pyarrow", "scikit-learn", "scipy"),
    "flower": ("flwr",),
    "loops": ("numba",),
    "mlflow": ("alembic", "mlflow-skinny", "sqlalchemy"),
    "mpi": ("mpi4py",),
    "remote": ("fsspec",),
    "tensorboard": ("tensorboard",),
    "text": ("tokenizers",),
    "trace": ("opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk"),
    "tune": ("optuna",),
}
"""What each extra brings, and the server's packages, which come without one."""
_STEPS = 3


@final
@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: what.
        state: "good"; "note": it works, and could be better; "fault": it does not work.
        text: what was found, and what to do about it.
    """

    about: str
    state: Literal["good", "note", "fault"]
    text: str


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at this installation and machine, and try the engine; exit code 1 where something does not work.

    Versions, what is installed beside the core, the processor as the compiler sees it, threads, the cache of
    compiled kernels, and a self-test of seconds: one network trained and compared with onnxruntime.

    \b
    Examples:
      onward doctor
      onward doctor --json
    """
    findings = []
    for check in (_versions, _extras, _processor, _cache, _self_test):
        for finding in _guarded(check):
            findings.append(finding)
            if not as_json:
                mark = {"good": "ok   ", "note": "note ", "fault": "FAULT"}[finding.state]
                print(f"{mark} {finding.about}: {finding.text}", flush=True)
    faults = sum(finding.state == "fault" for finding in findings)
    if as_json:
        print(json.dumps({"sound": not faults, "findings": [asdict(finding) for finding in findings]}))
    else:
        print("everything works" if not faults else f"{faults} of {len(findings)} findings are faults")
    if faults:
        raise typer.Exit(1)


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a check finds; what it fails with is found too, since that is what one calls a doctor for."""
    about = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with an installation is to be said
        yield Finding(about, "fault", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    import onward

    found = {package: _version(package) for package in _NEEDED}
    text = ", ".join(f"{package} {version}" for package, version in found.items() if version)
    yield Finding(
        "versions",
        "good",
        f"onward {onward.__version__}, Python {platform.python_version()} on {platform.system()} "
        f"{platform.machine()}; {text}",
    )
    if missing := [package for package, version in found.items() if version is None]:
        yield Finding("versions", "fault", f"missing: {', '.join(missing)}; pip install {' '.join(missing)}")


def _extras() -> Iterator[Finding]:
    for extra, packages in _EXTRAS.items():
        missing = [package for package in packages if _version(package) is None]
        if missing:
            way = "pip install onward" if extra == "server" else f"pip install 'onward[{extra}]'"
            yield Finding(f"extra {extra}", "note", f"{', '.join(missing)} not installed; {way} brings it")
        else:
            yield Finding(f"extra {extra}", "good", ", ".join(f"{p} {_version(p)}" for p in packages))


def _processor() -> Iterator[Finding]:
    from onward.compile.codegen.target import host_target

    target = host_target()
    caches = target.caches
    yield Finding(
        "processor",
        "good",
        f"{target.cpu}, vectors of {8 * target.vector_bytes} bits, {target.registers} registers, "
        f"{'fused' if target.fused else 'no fused'} multiply-add; "
        f"caches of {caches.l1 >> 10} and {caches.l2 >> 10} KiB a core, {caches.l3 >> 20} MiB for all",
    )
    plural = "thread" if target.cores == 1 else "threads"
    yield Finding("threads", "good", f"{target.cores} {plural}: the cores that this process may use")


def _cache() -> Iterator[Finding]:
    from onward.compile.disk import DiskCache, cache_folder

    for kind in ("kernels", "plans"):
        folder = cache_folder(kind)
        cache = DiskCache(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if cache.usable else 0
        if cache.usable:
            yield Finding(f"cache of {kind}", "good", f"{folder}, {size / 2**20:.1f} MiB")
        else:
            yield Finding(
                f"cache of {kind}",
                "note",
                f"{folder} cannot be written, or others can write to it: each process compiles anew; "
                "ONWARD_CACHE_DIR names another folder",
            )


def _self_test() -> Iterator[Finding]:
    from onward.nn import zoo
    from onward.verify import compare, compare_training

    model = zoo.lenet5().model
    began = time.perf_counter()
    forward = compare(model, samples=1, batch=2, engine="compiled")
    backward = compare_training(model, steps=_STEPS, batch=2, engine="compiled")
    seconds = time.perf_counter() - began
    for about, report in (("prediction", forward), ("training", backward)):
        sound = all(row.ok or row.rounding for row in report.rows)
        text = str(report).splitlines()[0]
        yield Finding(f"self-test of {about}", "good" if sound else "fault", text)
    yield Finding("time of the self-test", "good", f"{seconds:.1f} s, compiling included")
