"""KServe's Python server around onnxruntime; in an environment of its own, with `kserve` and `onnxruntime`.

    python benchmarks/service/kserve_peer.py PATH

Prints one line of JSON with the addresses when both ports answer, and serves until a signal.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid

_OUTPUT = os.dup(1)
"""The one line goes here; what the server itself prints goes to standard error."""
os.dup2(2, 1)

_DATATYPES = {"float16": "FP16", "float": "FP32", "double": "FP64", "string": "BYTES", "bool": "BOOL"}


class Onnx(Model):
    """One ONNX file."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [(o.name, o.type.removeprefix("tensor(")[:-1]) for o in self._session.get_outputs()]
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        """For the metadata."""
        return _described(self._session.get_inputs())

    async def get_output_types(self) -> list[dict[str, Any]]:
        """For the metadata."""
        return _described(self._session.get_outputs())

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer one request."""
        inputs = {}
        for tensor in payload.inputs:
            array = tensor.as_numpy()
            if tensor.datatype == "BYTES":
                array = np.vectorize(lambda v: v.decode() if isinstance(v, bytes) else v, otypes=[object])(
                    array
                )
            inputs[tensor.name] = array
        outputs = []
        wanted = [output.name for output in payload.request_outputs or []]
        found = self._session.run(None, inputs)
        for (name, kind), array in zip(self._outputs, found, strict=True):
            if wanted and name not in wanted:
                continue
            output = InferOutput(name, list(array.shape), _DATATYPES.get(kind, kind.upper()))
            output.set_data_from_numpy(array, binary_data=payload.from_grpc)
            outputs.append(output)
        return InferResponse(payload.id or generate_uuid(), self.name, outputs)


def _described(entries: Any) -> list[dict[str, Any]]:
    found = []
    for entry in entries:
        kind = entry.type.removeprefix("tensor(")[:-1]
        shape = [extent if isinstance(extent, int) else -1 for extent in entry.shape]
        found.append({"name": entry.name, "datatype": _DATATYPES.get(kind, kind.upper()), "shape": shape})
    return found


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


def models(path: Path) -> list[tuple[str, Path]]:
    """Name and file of a repository's models, or of the one that a file is."""
    if path.is_file():
        return [(path.parent.parent.name, path)]
    return [(file.parent.parent.name, file) for file in sorted(path.glob("*/1/model.onnx"))]


def announce(grpc_port: int, http_port: int) -> None:
    """Print the line that says where, when both ports answer."""
    for port in (grpc_port, http_port):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
    event = {"address": f"127.0.0.1:{grpc_port}", "http_address": f"127.0.0.1:{http_port}"}
    os.write(_OUTPUT, (json.dumps(event) + "\n").encode())


def path() -> Path:
    """The file or the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path", type=Path, help="an ONNX file, or a folder of <name>/1/model.onnx")
    found: Path = parser.parse_args().path
    if not found.exists():
        parser.error(f"there is no {found}")
    return found


def main() -> None:
    """Serve a file, or the models of a folder, until a signal."""
    served = models(path())
    grpc_port, http_port = free_port(), free_port()
    threading.Thread(target=announce, args=(grpc_port, http_port), daemon=True).start()
    server = ModelServer(http_port=http_port, grpc_port=grpc_port, workers=1, enable_grpc=True)
    server.start([Onnx(name, path) for name, path in served])


if __name__ == "__main__":
    main()
