"""Whatever a request says, decoding gives arrays or an error of ours."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.errors import OnwardError
from onward_protos.grpc_service_pb2 import InferTensorContents, ModelInferRequest
from onward_protos.tensors import DATATYPES
from onward_server.grpc_convert import decode_inputs
from onward_server.settings import Limits

contents = st.builds(
    InferTensorContents,
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    fp32_contents=st.lists(st.floats(width=32), max_size=3),
    bytes_contents=st.lists(st.binary(max_size=3), max_size=3),
)
tensors = st.builds(
    ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["", "a", "b"]),
    datatype=st.sampled_from([*DATATYPES, "", "FP8"]),
    shape=st.lists(st.integers(-2, 4) | st.sampled_from([2**62, -(2**63)]), max_size=3),
    contents=st.none() | contents,
)
requests = st.builds(
    ModelInferRequest,
    inputs=st.lists(tensors, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=40), max_size=3),
)


@given(requests)
@settings(max_examples=150, deadline=None)
def test_a_request_is_decoded_or_refused(request: ModelInferRequest) -> None:
    try:
        arrays = decode_inputs(request, Limits())
    except OnwardError:
        return
    assert list(arrays) == [tensor.name for tensor in request.inputs]
    for tensor in request.inputs:
        array = arrays[tensor.name]
        assert isinstance(array, np.ndarray)
        assert array.shape == tuple(tensor.shape)
