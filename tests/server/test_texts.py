"""Models that carry a tokenizer take texts besides token numbers."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.data import Preparation, Subwords, TextPreparation, Vocabulary
from onward_server import ServerThread
from serving import put, settings

TEXTS = ["a good film", "bad", "a good good day, é", ""]
WORDS = Vocabulary.fit(TEXTS, min_count=1)
PIECES = Subwords.fit(TEXTS * 4, "bpe", 280)
TOKENS = 4


def classifier(encoder: Vocabulary | Subwords, batch: str | int = "n") -> onnx.ModelProto:
    """The mean of the embeddings of four tokens."""
    table = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["rows"]),
            helper.make_node("ReduceMean", ["rows", "axes"], ["scores"], keepdims=0),
        ],
        "classifier",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, [batch, TOKENS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    metadata = {"onward.preparation": Preparation(text=TextPreparation(encoder, TOKENS)).to_json()}
    if isinstance(encoder, Vocabulary):
        metadata["onward.vocabulary"] = ["<padding>", "<unknown>", *encoder.words]
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    return model


def ask(address: str, model: str, datatype: str, array: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=60)
    array = np.asarray(array, object if datatype == "BYTES" else None)
    tensor = {"name": "tokens", "datatype": datatype, "shape": list(array.shape), "data": array.tolist()}
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode())
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    if response.status != 200:
        return response.status, answer["error"]
    assert answer["parameters"]["cross_check"] == "passed"
    return 200, np.reshape(answer["outputs"][0]["data"], answer["outputs"][0]["shape"])


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_texts_are_answered_as_their_tokens(tmp_path: Path, isolation: str) -> None:
    encoders = {"words": WORDS, "pieces": PIECES}
    for name, encoder in encoders.items():
        put(tmp_path, name, 1, classifier(encoder))
        (tmp_path / name / "config.toml").write_text("[batching]\nmax_batch = 8")
    chosen = settings(
        tmp_path, http_listen="127.0.0.1:0", isolation=isolation, cross_check={"policy": "every"}
    )
    with ServerThread(chosen) as server:
        for name, encoder in encoders.items():
            tokens = encoder.encode(TEXTS, TOKENS)
            _, want = ask(server.http_address, name, "INT64", tokens)
            assert len(np.unique(want.round(4), axis=0)) == len(TEXTS)
            for texts in (TEXTS, [[text] for text in TEXTS]):
                for _ in range(5):  # quick runs would move into the server's process
                    status, got = ask(server.http_address, name, "BYTES", texts)
                    assert status == 200
                    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_what_is_no_text_for_each_row_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "words", 1, classifier(WORDS))
    put(tmp_path, "one", 1, classifier(WORDS, 1))
    damaged = classifier(WORDS)
    damaged.metadata_props[0].value = "{"
    put(tmp_path, "damaged", 1, damaged)
    chosen = settings(
        tmp_path, http_listen="127.0.0.1:0", isolation="thread", cross_check={"policy": "every"}
    )
    with ServerThread(chosen) as server:
        for model, datatype, array, says in (
            ("words", "BYTES", [["a", "b"]], "or a text for each of its rows, BYTES[N]"),
            ("words", "FP32", [[1.0] * TOKENS], "the model takes INT64[n, 4] or texts, BYTES[N]"),
            ("one", "BYTES", ["a", "b"], "the model takes INT64[1, 4], or a text for each"),
            ("damaged", "BYTES", ["a"], "the model takes INT64[n, 4]"),
        ):
            status, error = ask(server.http_address, model, datatype, array)
            assert status == 400
            assert says in error
        assert ask(server.http_address, "one", "BYTES", ["a good film"])[0] == 200
        assert ask(server.http_address, "damaged", "INT64", [[2, 3, 0, 0]])[0] == 200
