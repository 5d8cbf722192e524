"""MLServer around onnxruntime; in an environment of its own, with `mlserver` and `onnxruntime`.

    python benchmarks/service/mlserver_peer.py PATH

Prints one line of JSON with the addresses when both ports answer, and serves until a signal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import threading
import time
from pathlib import Path

import onnxruntime
from mlserver import MLModel, MLServer
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.settings import ModelParameters, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor

_OUTPUT = os.dup(1)
"""The one line goes here; what the server itself prints goes to standard error."""
os.dup2(2, 1)

_DATATYPES = {"float16": "FP16", "float": "FP32", "double": "FP64", "string": "BYTES", "bool": "BOOL"}


class Onnx(MLModel):
    """One ONNX file."""

    async def load(self) -> bool:
        """Open it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self.settings.parameters.uri
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._settings.inputs, self._settings.outputs = (
            [
                MetadataTensor(
                    name=entry.name,
                    datatype=_DATATYPES.get(kind := entry.type.removeprefix("tensor(")[:-1], kind.upper()),
                    shape=[extent if isinstance(extent, int) else -1 for extent in entry.shape],
                )
                for entry in entries
            ]
            for entries in (self._session.get_inputs(), self._session.get_outputs())
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        inputs = {}
        for tensor in payload.inputs:
            codec = StringCodec if tensor.datatype == "BYTES" else NumpyCodec
            inputs[tensor.name] = codec.decode_input(tensor)
        outputs = []
        wanted = [output.name for output in payload.outputs or []]
        for entry, array in zip(self._session.get_outputs(), self._session.run(None, inputs), strict=True):
            if wanted and entry.name not in wanted:
                continue
            if array.dtype == object:
                outputs.append(StringCodec.encode_output(entry.name, array.tolist()))
            else:
                outputs.append(NumpyCodec.encode_output(entry.name, array))
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs
        )


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


async def main(path: Path) -> None:
    """Serve a file, or the models of a folder, until a signal."""
    ports = []
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as found:
            ports.append(found.getsockname()[1])
    files = [path] if path.is_file() else sorted(path.glob("*/1/model.onnx"))
    models = [
        ModelSettings(
            name=file.parent.parent.name,
            implementation=Onnx,
            parameters=ModelParameters(uri=str(file), version="1"),
        )
        for file in files
    ]
    settings = Settings(
        host="127.0.0.1", grpc_port=ports[0], http_port=ports[1], metrics_port=ports[2], parallel_workers=0
    )
    threading.Thread(target=announce, args=(ports[0], ports[1]), daemon=True).start()
    await MLServer(settings).start(models)


if __name__ == "__main__":
    asyncio.run(main(path()))
