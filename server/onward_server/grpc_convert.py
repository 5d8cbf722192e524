"""Protocol messages to arrays and back. What contradicts itself or the protocol is refused by field name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from onward.errors import UnsupportedError
from onward.graph import Array, TensorSpec
from onward_protos.cross_check_pb2 import CrossCheckStatistics
from onward_protos.grpc_service_pb2 import (
    InferParameter,
    InferStatistics,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataResponse,
    ModelStatistics,
    StatisticDuration,
)
from onward_protos.model_config_pb2 import (
    DataType,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
    ModelTransactionPolicy,
    ModelVersionPolicy,
)
from onward_protos.tensors import (
    CONTENTS_FIELDS,
    TensorFormatError,
    datatype_of,
    decode_contents,
    decode_raw,
    encode_raw,
)
from onward_server.dataplane import Inference, ServedModel
from onward_server.errors import RequestError

__all__ = [
    "PLATFORM",
    "check_statistics",
    "decode_inputs",
    "encode_answer",
    "infer_statistics",
    "is_quick_to_decode",
    "model_config",
    "model_metadata",
    "requested_outputs",
]

PLATFORM = "onnx"

_UNSUPPORTED_PARAMETERS = frozenset({"shared_memory_region", "classification"})


def decode_inputs(request: ModelInferRequest) -> dict[str, Array]:
    """The input arrays of a request, from raw or typed contents.

    Raises:
        RequestError: names the field that is wrong.
        UnsupportedError: an extension of the protocol that this server does not have.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; "
            "give one for each input, in their order"
        )
    arrays: dict[str, Array] = {}
    for position, tensor in enumerate(request.inputs):
        where = f"inputs[{position}] ({tensor.name!r})"
        if not tensor.name:
            raise RequestError(f"inputs[{position}].name is empty")
        if tensor.name in arrays:
            raise RequestError(f"{where}: the name is given twice")
        _refuse_parameters(where, tensor.parameters)
        if raw and tensor.HasField("contents"):
            raise RequestError(f"{where}.contents: the request uses raw_input_contents too; use one of them")
        try:
            array = decode_raw(tensor.datatype, tensor.shape, raw[position]) if raw else _decode_typed(tensor)
        except TensorFormatError as error:
            field = f"raw_input_contents[{position}] for {where}" if raw else f"{where}.contents"
            raise RequestError(f"{field}: {error}") from None
        arrays[tensor.name] = _with_meaning(where, tensor.datatype, array)
    return arrays


def is_quick_to_decode(request: ModelInferRequest) -> bool:
    """Whether decoding only wraps bytes: typed lists and BYTES are converted element by element."""
    return bool(request.raw_input_contents) and all(t.datatype != "BYTES" for t in request.inputs)


def requested_outputs(request: ModelInferRequest) -> list[str] | None:
    """The names of the outputs that a request asks for; None: all.

    Raises:
        UnsupportedError: an extension of the protocol that this server does not have.
    """
    for position, output in enumerate(request.outputs):
        _refuse_parameters(f"outputs[{position}] ({output.name!r})", output.parameters)
    return [output.name for output in request.outputs] or None


def encode_answer(request: ModelInferRequest, model: ServedModel, answer: Inference) -> ModelInferResponse:
    """The response to a request: outputs in raw form, the request's id, the cross-check's outcome."""
    response = ModelInferResponse(
        model_name=model.name,
        model_version=str(model.version),
        id=request.id,
        parameters={
            "cross_check": InferParameter(string_param=answer.outcome.value),
            "engine": InferParameter(string_param=answer.engine),
        },
    )
    for name, array in answer.outputs.items():
        response.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        response.raw_output_contents.append(encode_raw(array))
    return response


def model_metadata(model: ServedModel, versions: Sequence[int]) -> ModelMetadataResponse:
    """Versions, inputs and outputs of a model."""

    def tensors(specs: Sequence[TensorSpec]) -> list[ModelMetadataResponse.TensorMetadata]:
        return [
            ModelMetadataResponse.TensorMetadata(
                name=spec.name, datatype=datatype_of(spec.dtype), shape=_dims(spec)
            )
            for spec in specs
        ]

    return ModelMetadataResponse(
        name=model.name,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=tensors(model.inputs),
        outputs=tensors(model.outputs),
    )


def model_config(model: ServedModel, threads: int, versions: Sequence[int]) -> ModelConfig:
    """How a model is served; the cross-check's settings are among the parameters."""
    check = model.check
    parameters = {
        "engine": model.engine,
        "cross_check.policy": check.policy,
        "cross_check.rate": str(check.rate),
        "cross_check.on_mismatch": check.on_mismatch,
    }
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        tolerance = check.tolerance_of(dtype)
        if tolerance is not None:
            parameters[f"cross_check.tolerance.{dtype}"] = f"rtol={tolerance.rtol}, atol={tolerance.atol}"
    return ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend="onward",
        version_policy=ModelVersionPolicy(specific=ModelVersionPolicy.Specific(versions=versions)),
        max_batch_size=0,
        input=[
            ModelInput(name=spec.name, data_type=_data_type(spec), dims=_dims(spec)) for spec in model.inputs
        ],
        output=[
            ModelOutput(name=spec.name, data_type=_data_type(spec), dims=_dims(spec))
            for spec in model.outputs
        ],
        instance_group=[
            ModelInstanceGroup(name=model.name, count=threads, kind=ModelInstanceGroup.Kind.KIND_CPU)
        ],
        default_model_filename="model.onnx",
        parameters={key: ModelParameter(string_value=value) for key, value in parameters.items()},
        model_transaction_policy=ModelTransactionPolicy(decoupled=False),
    )


def infer_statistics(model: ServedModel) -> ModelStatistics:
    """Counts and times of a model's requests. Every request is one execution: nothing is batched."""
    counts = model.infer_statistics

    def duration(count: int, nanoseconds: int) -> StatisticDuration:
        return StatisticDuration(count=count, ns=nanoseconds)

    return ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=counts.last_inference_ms,
        inference_count=counts.success_count,
        execution_count=counts.success_count,
        inference_stats=InferStatistics(
            success=duration(counts.success_count, counts.success_ns),
            fail=duration(counts.fail_count, counts.fail_ns),
            queue=duration(counts.success_count, counts.queue_ns),
            compute_infer=duration(counts.success_count, counts.compute_ns),
        ),
    )


def check_statistics(model: ServedModel) -> CrossCheckStatistics:
    """Counts of a model's cross-checks."""
    counts = model.check_statistics
    return CrossCheckStatistics(
        model_name=model.name,
        model_version=str(model.version),
        policy=model.check.policy,
        on_mismatch=model.check.on_mismatch,
        requests=counts.requests,
        checks=counts.checks,
        passed=counts.passed,
        failed=counts.failed,
        skipped=counts.skipped,
        dropped=counts.dropped,
        max_absolute_error=counts.max_absolute_error,
        max_relative_error=counts.max_relative_error,
        last_mismatch=counts.last_mismatch,
    )


def _decode_typed(tensor: ModelInferRequest.InferInputTensor) -> Array:
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    expected = CONTENTS_FIELDS.get(tensor.datatype)
    wrong = [name for name in filled if name != expected]
    if expected is not None and wrong:
        raise TensorFormatError(f"{', '.join(wrong)} is filled; {tensor.datatype} belongs in {expected}")
    values = getattr(tensor.contents, expected) if expected is not None else ()
    return decode_contents(tensor.datatype, tensor.shape, values)


def _with_meaning(where: str, datatype: str, array: Array) -> Array:
    if datatype == "BF16":
        return array.view(ml_dtypes.bfloat16)
    if datatype != "BYTES":
        return array
    text = np.empty(array.size, dtype=object)
    try:
        text[:] = [element.decode() for element in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: a BYTES element is not UTF-8, as ONNX strings are: {error}") from None
    return text.reshape(array.shape)


def _refuse_parameters(where: str, parameters: Mapping[str, InferParameter]) -> None:
    for name in sorted(_UNSUPPORTED_PARAMETERS.intersection(parameters)):
        raise UnsupportedError(f"{where}.parameters[{name!r}]: this extension is not supported")


def _dims(spec: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape or ()]


def _data_type(spec: TensorSpec) -> DataType:
    datatype = datatype_of(spec.dtype)
    return DataType.Value("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}")
