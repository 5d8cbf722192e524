"""What docker/check.sh does outside the container: makes data and a slow model, and calls the server."""

from __future__ import annotations

import argparse
import socket
import sys
import time
from pathlib import Path

import numpy as np

_SLOW_SIDE = 1024
_SLOW_LAYERS = 96


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("free-port", help="print a TCP port that nothing listens on")
    data = commands.add_parser("data", help="write some digits as .npz")
    data.add_argument("path", type=Path)
    slow = commands.add_parser("slow-model", help="write a model that computes for seconds on one core")
    slow.add_argument("path", type=Path)
    predict = commands.add_parser("predict", help="compare a cross-checked answer with onnxruntime's here")
    predict.add_argument("address")
    predict.add_argument("model", type=Path, help="the file that the server serves as `digits`")
    predict.add_argument("data", type=Path)
    request = commands.add_parser(
        "slow-request", help="ask the slow model; say when it goes out and when the answer came"
    )
    request.add_argument("address")
    train = commands.add_parser("train", help="start a job, follow it, promote what it trained, take it back")
    train.add_argument("address")
    train.add_argument("spec", help="data on the server")
    options = parser.parse_args()
    if options.command == "free-port":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            print(listener.getsockname()[1])
    elif options.command == "data":
        _write_digits(options.path)
    elif options.command == "slow-model":
        _write_slow_model(options.path)
    elif options.command == "predict":
        return _predict(options.address, options.model, options.data)
    elif options.command == "train":
        return _train(options.address, options.spec)
    else:
        return _slow_request(options.address)
    return 0


def _write_digits(path: Path, count: int = 600) -> None:
    from onward.data import load_digits

    digits = load_digits()
    np.savez(path, image=digits.inputs["image"][:count], y=np.asarray(digits.targets)[:count])
    np.save(path.with_name("images.npy"), digits.inputs["image"][:4])


def _write_slow_model(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side = _SLOW_SIDE
    weight = np.full((side, side), 1.0 / side, dtype=np.float32)
    nodes, value = [], "x"
    for layer in range(_SLOW_LAYERS):
        nodes.append(helper.make_node("MatMul", [value, "weight"], [f"product_{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"product_{layer}"], [f"y_{layer}"]))
        value = f"y_{layer}"
    nodes.append(helper.make_node("ReduceMean", [value], ["y"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def _predict(address: str, model: Path, data: Path) -> int:
    import onnxruntime

    from onward_client import Client

    with np.load(data) as arrays:
        images = arrays["image"][:16]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]
    expected = dict(zip(outputs, session.run(outputs, {name: images}), strict=True))
    with Client(address, timeout=30) as client:
        answer = client.infer("digits", {name: images})
    print(f"engine {answer.parameters.get('engine')}, cross_check {answer.parameters.get('cross_check')}")
    if answer.parameters.get("engine") != "onward" or answer.parameters.get("cross_check") != "passed":
        return 1
    if answer.outputs.keys() != expected.keys():
        print(f"outputs {sorted(answer.outputs)}, onnxruntime has {sorted(expected)}")
        return 1
    for output, value in expected.items():
        np.testing.assert_allclose(answer.outputs[output], value, rtol=1e-4, atol=1e-5)
    return 0


def _slow_request(address: str) -> int:
    from onward_client import Client

    x = np.ones((_SLOW_SIDE, _SLOW_SIDE), dtype=np.float32)
    expected = 1.0
    for _ in range(_SLOW_LAYERS):
        expected = float(np.tanh(expected))
    with Client(address, timeout=60) as client:
        client.wait_until_ready(10)
        print("sending", flush=True)
        y = client.predict("slow", {"x": x})["y"]
    print(f"answered {time.time():.3f}")
    np.testing.assert_allclose(y, expected, rtol=1e-3)
    return 0


def _train(address: str, spec: str) -> int:
    from onward_client import Client

    with Client(address, timeout=300) as client:
        job = client.training.start({"model": "lenet5", "data": spec, "epochs": 1})
        kind = ""
        for event in client.training.watch(job.id):
            kind = event.kind
            print(f"{event.sequence} {kind} {dict(event.fields)}"[:200])
        if kind != "completed":
            return 1
        promoted = client.training.promote(job.id, "digits")
        shape = client.metadata("digits").inputs[0].shape
        images = np.zeros([max(extent, 1) for extent in shape], np.float32)
        answers = client.infer("digits", [images]).version, promoted.version
        back = client.training.rollback("digits")
        answers = (*answers, client.infer("digits", [images]).version)
    print(f"promoted {promoted.version}, rolled back {back}, answers by {answers}")
    return 0 if (back, answers) == (("2", "1"), ("2", "2", "1")) else 1


if __name__ == "__main__":
    sys.exit(main())
