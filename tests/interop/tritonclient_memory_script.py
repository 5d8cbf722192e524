"""Run by test_tritonclient: shared memory and settings through both of its clients."""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm

found: dict[str, object] = {}
x = np.arange(6, dtype=np.int64)
for kind, module, address in (
    ("grpc", tritonclient.grpc, sys.argv[1]),
    ("http", tritonclient.http, sys.argv[2]),
):
    client = module.InferenceServerClient(address)
    handle = shm.create_shared_memory_region("data", f"/onward-{kind}-{sys.argv[3]}", 2 * x.nbytes)
    try:
        shm.set_shared_memory_region(handle, [x])
        client.register_system_shared_memory("data", f"/onward-{kind}-{sys.argv[3]}", 2 * x.nbytes)
        status = client.get_system_shared_memory_status()
        tensor = module.InferInput("x", [6], "INT64")
        tensor.set_shared_memory("data", x.nbytes)
        output = module.InferRequestedOutput("y")
        output.set_shared_memory("data", x.nbytes, offset=x.nbytes)
        answer = client.infer("int64", [tensor], outputs=[output])
        values = shm.get_contents_as_numpy(handle, np.int64, [6], offset=x.nbytes)
        described = answer.get_output("y")
        name = described["name"] if isinstance(described, dict) else described.name
        regions = len(status.regions) if kind == "grpc" else len(status)
        found[kind] = [name, values.tolist(), regions]
        client.unregister_system_shared_memory()
    finally:
        shm.destroy_shared_memory_region(handle)
    settings = client.update_log_settings({"log_verbose_level": 1}) if kind == "http" else None
    found[f"{kind} log"] = settings if kind == "http" else client.get_log_settings(as_json=True)["settings"]
    client.close()
print(json.dumps(found))
