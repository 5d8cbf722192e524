"""The generated code loads without a warning and speaks the protocol's names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_stubs_load_without_a_warning() -> None:
    code = (
        "from onward_protos import cross_check_pb2_grpc, grpc_service_pb2, grpc_service_pb2_grpc\n"
        "service = grpc_service_pb2.DESCRIPTOR.services_by_name['GRPCInferenceService']\n"
        "print(service.full_name, *(method.name for method in service.methods))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(ROOT / "protos")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    declared = re.findall(
        r"^  rpc (\w+)\(", (ROOT / "protos/onward_protos/grpc_service.proto").read_text(), re.MULTILINE
    )
    assert "ModelInfer" in declared
    assert done.stdout.split() == ["inference.GRPCInferenceService", *declared]
