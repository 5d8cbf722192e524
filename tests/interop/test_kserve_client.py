"""KServe's own clients, in their own environment, against our server.

ONWARD_KSERVE_PYTHON names an interpreter that has `kserve`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from onward_server import ServerThread
from serving import RIGHT, put, settings, two_by_two

PYTHON = os.environ.get("ONWARD_KSERVE_PYTHON", "")


@pytest.mark.skipif(not PYTHON, reason="ONWARD_KSERVE_PYTHON does not name an interpreter with kserve")
@pytest.mark.slow
def test_grpc_and_rest_clients_work_unchanged(tmp_path: Path) -> None:
    put(tmp_path, "arithmetic", 1, two_by_two())
    with ServerThread(settings(tmp_path, http_listen="127.0.0.1:0"), RIGHT) as server:
        done = subprocess.run(
            [PYTHON, str(Path(__file__).parent / "kserve_script.py"), server.address, server.http_address],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    answer = ["seven", {"total": [[5, 7, 9]], "product": [[4, 10, 18]]}]
    answers = {f"{way} {binary}": answer for way in ("grpc", "rest") for binary in (False, True)}
    flags = dict.fromkeys(("live", "ready", "model ready", "rest live", "rest ready"), True)
    assert found == {**flags, **answers, "unknown": "NOT_FOUND"}
