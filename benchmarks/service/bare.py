"""The peer of `load`: a grpc.aio + uvloop handler around onnxruntime, without checks, limits or isolation.

    python -m benchmarks.service.bare FILE

Prints one line of JSON with its address, and serves until a signal.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator

import grpc
import numpy as np
import onnxruntime
import uvloop

from onward_protos import grpc_service_pb2 as pb


async def main(path: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    async def infer(
        message: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        tensor = message.inputs[0]
        x = np.frombuffer(message.raw_input_contents[0], np.float32).reshape(tuple(tensor.shape))
        (y,) = session.run(None, {"x": x})
        response = pb.ModelInferResponse(model_name=message.model_name, id=message.id)
        response.outputs.add(name="y", datatype="FP32", shape=y.shape)
        response.raw_output_contents.append(y.tobytes())
        return response

    async def stream(
        messages: AsyncIterator[pb.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async for message in messages:
            yield pb.ModelStreamInferResponse(infer_response=await infer(message, context))

    server = grpc.aio.server()
    streaming = grpc.stream_stream_rpc_method_handler(
        stream, pb.ModelInferRequest.FromString, pb.ModelStreamInferResponse.SerializeToString
    )
    handler = grpc.unary_unary_rpc_method_handler(
        infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
    )
    handlers = {"ModelInfer": handler, "ModelStreamInfer": streaming}
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", help="an ONNX model with the input `x` and the output `y`")
    uvloop.run(main(parser.parse_args().file))
