"""Run by test_kserve_client with an interpreter that has `kserve`: its clients against a running server."""

from __future__ import annotations

import asyncio
import json
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig


def request(binary: bool) -> InferRequest:
    inputs = []
    for name, values in (("a", [1, 2, 3]), ("b", [4, 5, 6])):
        tensor = InferInput(name, [1, 3], "FP32")
        tensor.set_data_from_numpy(np.float32([values]), binary_data=binary)
        inputs.append(tensor)
    return InferRequest("arithmetic", inputs, request_id="seven")


async def main() -> None:
    grpc_address, http_address = sys.argv[1:]
    found: dict[str, object] = {}
    client = InferenceGRPCClient(grpc_address)
    found["live"], found["ready"] = await client.is_server_live(), await client.is_server_ready()
    found["model ready"] = await client.is_model_ready("arithmetic")
    for binary in (False, True):
        answer = await client.infer(request(binary))
        found[f"grpc {binary}"] = [answer.id, {o.name: o.as_numpy().tolist() for o in answer.outputs}]
    try:
        await client.infer(InferRequest("nobody", request(True).inputs))
    except grpc.RpcError as error:
        found["unknown"] = error.code().name
    await client.close()
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    url = f"http://{http_address}"
    found["rest live"], found["rest ready"] = await rest.is_server_live(url), await rest.is_server_ready(url)
    for binary in (False, True):
        answer = await rest.infer(url, request(binary), model_name="arithmetic")
        found[f"rest {binary}"] = [answer.id, {o.name: o.as_numpy().tolist() for o in answer.outputs}]
    await rest.close()
    print(json.dumps(found))


asyncio.run(main())
