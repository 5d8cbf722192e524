"""Runs in an environment of its own with an unmodified tritonclient; prints what it saw as one JSON object.

Arguments: the server's gRPC and HTTP addresses, and the file of the model `bool`.
"""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.http as triton_http
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
    "load": status(lambda: client.load_model("nobody")),
    "shared memory": status(lambda: client.get_system_shared_memory_status()),
}
seen["statistics"] = client.get_inference_statistics("arithmetic", as_json=True)


answers: queue.Queue = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
for number in range(4):
    tensor = triton.InferInput("x", [1], "FP32" if number == 2 else "INT64")
    tensor.set_data_from_numpy(np.array([number], dtype=np.float32 if number == 2 else np.int64))
    client.async_stream_infer("int64", [tensor], request_id=str(number))
stream = []
for number in range(4):
    result, error = answers.get(timeout=60)
    if error is not None:
        stream.append([str(number), "error"])
    else:
        stream.append([result.get_response().id, result.as_numpy("y").tolist()[0]])
client.stop_stream()
seen["stream"] = stream

loaded = [client.is_model_ready("uint8")]
client.unload_model("uint8")
loaded.append(client.is_model_ready("uint8"))
client.load_model("uint8")
seen["unloaded"] = [*loaded, client.is_model_ready("uint8")]
content = Path(sys.argv[3]).read_bytes()
client.load_model("bool", config="{}", files={"file:5/model.onnx": content})
seen["overridden"] = client.get_model_metadata("bool", as_json=True)["versions"][0]
seen["batched"] = client.get_model_config("batched", as_json=True)["config"]


def both(client: object, module: object, **options: object) -> object:
    tensors = []
    for name in ("a", "b"):
        tensor = module.InferInput(name, [2, 3], "FP32")
        tensor.set_data_from_numpy(a, **options)
        tensors.append(tensor)
    return tensors


wanted = [triton.InferRequestedOutput("product", class_count=2)]
rows = client.infer("arithmetic", both(client, triton), outputs=wanted).as_numpy("product")
seen["classes"] = [[element.decode() for element in rows[-1]]]

web = triton_http.InferenceServerClient(sys.argv[2])
http: dict[str, object] = {
    "live": [
        web.is_server_live(),
        web.is_server_ready(),
        web.is_model_ready("arithmetic"),
        web.is_model_ready("nobody"),
    ],
    "fp32": {
        kind: web.infer(
            "arithmetic",
            both(web, triton_http, binary_data=kind == "binary"),
            outputs=[triton_http.InferRequestedOutput("product", binary_data=kind == "binary")],
        )
        .as_numpy("product")
        .tolist()
        for kind in ("json", "binary")
    },
    "compressed": web.infer(
        "arithmetic",
        both(web, triton_http, binary_data=True),
        request_compression_algorithm="gzip",
        response_compression_algorithm="gzip",
    )
    .as_numpy("product")
    .tolist(),
    "metadata": web.get_model_metadata("arithmetic"),
    "config": web.get_model_config("batched"),
    "statistics": web.get_inference_statistics("arithmetic"),
    "index": web.get_model_repository_index(),
}
for model, array, datatype in [("fp16", np.array([0.5, -2], np.float16), "FP16"), ("bytes", text, "BYTES")]:
    tensor = triton_http.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=True)
    found = web.infer(model, [tensor]).as_numpy("y").tolist()
    http[model] = [element.decode() if isinstance(element, bytes) else element for element in found]
rows = web.infer(
    "arithmetic",
    both(web, triton_http),
    outputs=[triton_http.InferRequestedOutput("product", binary_data=True, class_count=2)],
).as_numpy("product")
http["classes"] = [[element.decode() for element in rows[-1]]]
http["error"] = status(lambda: web.infer("arithmetic", both(web, triton_http)[:1]))[1]
web.unload_model("uint8")
gone = web.is_model_ready("uint8")
web.load_model("uint8")
http["unloaded"] = [gone, web.is_model_ready("uint8")]
seen["http"] = http
print(json.dumps(seen))
