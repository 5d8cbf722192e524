"""Runs in an environment of its own with an unmodified tritonclient; prints what it saw as one JSON object.

Arguments: the server's address.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
seen: dict[str, object] = {}


def infer(
    model: str, arrays: dict[str, tuple[np.ndarray, str]], outputs: list[str], **options: object
) -> triton.InferResult:
    inputs = []
    for name, (array, datatype) in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    wanted = [triton.InferRequestedOutput(name) for name in outputs] or None
    return client.infer(model, inputs, outputs=wanted, **options)


def status(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["OK", ""]


seen["live"] = [client.is_server_live(), client.is_server_ready()]
seen["model_ready"] = [client.is_model_ready("arithmetic"), client.is_model_ready("nobody")]
seen["server"] = client.get_server_metadata(as_json=True)
seen["metadata"] = client.get_model_metadata("arithmetic", as_json=True)
seen["config"] = client.get_model_config("arithmetic", as_json=True)
seen["index"] = client.get_model_repository_index(as_json=True)

a = np.arange(6, dtype=np.float32).reshape(2, 3)
result = infer("arithmetic", {"a": (a, "FP32"), "b": (a, "FP32")}, ["product"], request_id="42")
answer = result.get_response()
seen["fp32"] = result.as_numpy("product").tolist()
seen["absent"] = result.as_numpy("total") is None
seen["answer"] = [answer.model_name, answer.model_version, answer.id]
seen["cross_check"] = answer.parameters["cross_check"].string_param

for model, array, datatype in [
    ("int64", np.array([-(2**63), 2**63 - 1]), "INT64"),
    ("bool", np.array([True, False, True]), "BOOL"),
    ("fp16", np.array([0.5, -2], dtype=np.float16), "FP16"),
    ("uint8", np.array([0, 255], dtype=np.uint8), "UINT8"),
]:
    seen[model] = infer(model, {"x": (array, datatype)}, []).as_numpy("y").tolist()
text = np.array(["a", "é"], dtype=object)
seen["bytes"] = [element.decode() for element in infer("bytes", {"x": (text, "BYTES")}, []).as_numpy("y")]

seen["errors"] = {
    "unknown model": status(lambda: infer("nobody", {"x": (a, "FP32")}, [])),
    "unknown version": status(lambda: infer("int64", {"x": (np.array([1]), "INT64")}, [], model_version="9")),
    "unknown input": status(lambda: infer("int64", {"z": (np.array([1]), "INT64")}, [])),
    "missing input": status(lambda: infer("arithmetic", {"a": (a, "FP32")}, [])),
    "wrong datatype": status(lambda: infer("int64", {"x": (a[0], "FP32")}, [])),
    "wrong shape": status(lambda: infer("arithmetic", {"a": (a.T.copy(), "FP32"), "b": (a, "FP32")}, [])),
    "unknown output": status(lambda: infer("int64", {"x": (np.array([1]), "INT64")}, ["z"])),
    "metadata": status(lambda: client.get_model_metadata("nobody")),
    "broken model": status(lambda: infer("broken", {"x": (a, "FP32")}, [])),
    "load": status(lambda: client.load_model("int64")),
    "shared memory": status(lambda: client.get_system_shared_memory_status()),
}
seen["statistics"] = client.get_inference_statistics("arithmetic", as_json=True)
print(json.dumps(seen))
