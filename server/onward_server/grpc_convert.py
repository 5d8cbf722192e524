"""Protocol messages to arrays and back. What contradicts itself or the protocol is refused by field name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from onward.graph import Array, TensorSpec
from onward_protos.cross_check_pb2 import CrossCheckStatistics
from onward_protos.grpc_service_pb2 import (
    InferBatchStatistics,
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
from onward_server.dataplane import InferAnswer, InferRequest, RequestedOutput, ServedModel
from onward_server.dataplane.messages import (
    Parameter,
    check_name,
    check_tensor,
    scheduling,
    tensor_parameters,
)
from onward_server.dataplane.model_configuration import parameters_of
from onward_server.dataplane.shared_memory import Placement, SharedMemory
from onward_server.errors import RequestError
from onward_server.settings import Limits
from onward_server.statuses import cut, public_reason

__all__ = [
    "PLATFORM",
    "check_statistics",
    "decode_inputs",
    "dims_of",
    "infer_request",
    "infer_response",
    "infer_statistics",
    "is_large",
    "is_quick_to_decode",
    "model_config",
    "model_metadata",
    "requested_outputs",
    "with_meaning",
]

PLATFORM = "onnx"
_LARGE = 1 << 20
_REGION = "shared_memory_region"
_NO_REGIONS = SharedMemory(False)


def infer_request(
    request: ModelInferRequest,
    raw: Sequence[memoryview] | None,
    limits: Limits,
    deadline: float | None,
    headers: Mapping[str, str],
    regions: SharedMemory,
) -> InferRequest:
    """A request in neutral form.

    Args:
        request: the message.
        raw: its raw contents, where they were taken out of it.
        limits: bounds on it.
        deadline: of the call, as `time.monotonic()`.
        headers: of the call.
        regions: shared memory that inputs may lie in.

    Raises:
        RequestError: names the field that is wrong.
        UnsupportedError: an extension of the protocol that this server does not have.
    """
    for field, names in (("inputs", request.inputs), ("outputs", request.outputs)):
        if len(names) > limits.tensors:
            raise RequestError(f"{field} has {len(names)} entries; at most {limits.tensors} are taken")
    priority, until = scheduling(_parameters("parameters", request.parameters), time.monotonic())
    deadlines = [moment for moment in (deadline, until) if moment is not None]
    return InferRequest(
        check_name("model_name", request.model_name, limits),
        decode_inputs(request, limits, regions, raw),
        check_name("model_version", request.model_version, limits),
        requested_outputs(request, limits),
        check_name("id", request.id, limits),
        priority,
        min(deadlines, default=None),
        headers,
    )


def decode_inputs(
    request: ModelInferRequest,
    limits: Limits,
    regions: SharedMemory = _NO_REGIONS,
    taken: Sequence[memoryview] | None = None,
) -> dict[str, Array]:
    """The input arrays of a request, from raw or typed contents or from shared memory.

    Args:
        request: the message.
        limits: bounds on it.
        regions: shared memory that inputs may lie in.
        taken: raw contents that are not in the message any more; None: they are.

    Raises:
        RequestError: names the field that is wrong.
        UnsupportedError: an extension of the protocol that this server does not have.
    """
    raw: Sequence[bytes | memoryview] = request.raw_input_contents if taken is None else taken
    expected, next_raw = len(request.inputs), 0
    if raw and len(raw) != expected:
        expected = sum(_REGION not in tensor.parameters for tensor in request.inputs)
        if len(raw) != expected:
            raise RequestError(
                f"raw_input_contents has {len(raw)} entries for {expected} inputs; "
                "give one for each input, in their order"
            )
    arrays: dict[str, Array] = {}
    for position, tensor in enumerate(request.inputs):
        where = f"inputs[{position}] ({tensor.name!r})"
        if not tensor.name:
            raise RequestError(f"inputs[{position}].name is empty")
        if tensor.name in arrays:
            raise RequestError(f"{where}: the name is given twice")
        check_name(f"inputs[{position}].name", tensor.name, limits)
        check_tensor(where, tensor.shape, limits)
        placement = None
        if tensor.parameters:
            placement = tensor_parameters(where, _parameters(where, tensor.parameters))[1]
        if placement is not None:
            arrays[tensor.name] = _from_region(where, tensor, placement, regions)
            if raw and expected == len(request.inputs):
                raise RequestError(f"{where}: it lies in shared memory, and raw_input_contents has it too")
            continue
        if raw and tensor.HasField("contents"):
            raise RequestError(f"{where}.contents: the request uses raw_input_contents too; use one of them")
        try:
            array = decode_raw(tensor.datatype, tensor.shape, raw[next_raw]) if raw else _decode_typed(tensor)
        except TensorFormatError as error:
            field = f"raw_input_contents[{next_raw}] for {where}" if raw else f"{where}.contents"
            raise RequestError(f"{field}: {error}") from None
        if taken is not None and array.dtype != object:
            # a view would lie anywhere, and keep alive what was read with it
            array = array.copy()
        next_raw += 1
        arrays[tensor.name] = with_meaning(where, tensor.datatype, array)
    return arrays


def _from_region(
    where: str, tensor: ModelInferRequest.InferInputTensor, placement: Placement, regions: SharedMemory
) -> Array:
    if tensor.HasField("contents"):
        raise RequestError(f"{where}.contents: the tensor lies in shared memory too; use one of them")
    try:
        array = decode_raw(tensor.datatype, tensor.shape, regions.read(where, placement))
    except TensorFormatError as error:
        raise RequestError(f"{where} in shared memory: {error}") from None
    return with_meaning(where, tensor.datatype, array)


def is_quick_to_decode(request: ModelInferRequest, raw: Sequence[memoryview] | None) -> bool:
    """Whether decoding is a copy that is not too long: typed lists and BYTES are converted one by one."""
    found: Sequence[bytes | memoryview] = request.raw_input_contents if raw is None else raw
    if not found or any(tensor.datatype == "BYTES" for tensor in request.inputs):
        return False
    return raw is None or sum(map(len, raw)) <= _LARGE


def requested_outputs(request: ModelInferRequest, limits: Limits) -> list[RequestedOutput] | None:
    """The outputs that a request asks for; None: all.

    Raises:
        RequestError: a name that is too long.
        UnsupportedError: an extension of the protocol that this server does not have.
    """
    found = []
    for position, output in enumerate(request.outputs):
        name = check_name(f"outputs[{position}].name", output.name, limits)
        where = f"outputs[{position}] ({name!r})"
        found.append(RequestedOutput(name, *tensor_parameters(where, _parameters(where, output.parameters))))
    return found or None


def infer_response(answer: InferAnswer) -> ModelInferResponse:
    """The response: outputs in raw form, the request's id, the cross-check's outcome."""
    response = ModelInferResponse(
        model_name=answer.model,
        model_version=str(answer.version),
        id=answer.id,
        parameters={
            name: InferParameter(string_param=str(value)) for name, value in answer.parameters.items()
        },
    )
    for name, array in answer.outputs.items():
        output = response.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        placement = answer.placed.get(name)
        if placement is None:
            response.raw_output_contents.append(encode_raw(array))
            continue
        output.parameters[_REGION].string_param = placement.region
        output.parameters["shared_memory_byte_size"].int64_param = placement.size
        if placement.offset:
            output.parameters["shared_memory_offset"].int64_param = placement.offset
        # outputs and raw contents stand in the same order
        response.raw_output_contents.append(b"")
    return response


def is_large(answer: InferAnswer) -> bool:
    """Whether encoding an answer takes long enough to leave the event loop."""
    return any(array.nbytes > _LARGE or array.dtype == object for array in answer.outputs.values())


def model_metadata(model: ServedModel, versions: Sequence[int]) -> ModelMetadataResponse:
    """Versions, inputs and outputs of a model."""

    def tensors(specs: Sequence[TensorSpec]) -> list[ModelMetadataResponse.TensorMetadata]:
        return [
            ModelMetadataResponse.TensorMetadata(
                name=spec.name, datatype=datatype_of(spec.dtype), shape=dims_of(spec)
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


def model_config(model: ServedModel, versions: Sequence[int]) -> ModelConfig:
    """How a model is served; the engine and the cross-check's settings are among the parameters."""
    settings = model.settings
    parameters = parameters_of(settings, model.check, model.engine, cut(model.reason))
    batching = settings.batching
    skipped = 0 if batching is None else 1
    config = ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend="onward",
        version_policy=ModelVersionPolicy(specific=ModelVersionPolicy.Specific(versions=versions)),
        max_batch_size=0 if batching is None else batching.max_batch,
        input=[
            ModelInput(name=spec.name, data_type=_data_type(spec), dims=dims_of(spec)[skipped:])
            for spec in model.inputs
        ],
        output=[
            ModelOutput(name=spec.name, data_type=_data_type(spec), dims=dims_of(spec)[skipped:])
            for spec in model.outputs
        ],
        instance_group=[
            ModelInstanceGroup(
                name=model.name, count=settings.instances or 1, kind=ModelInstanceGroup.Kind.KIND_CPU
            )
        ],
        default_model_filename="model.onnx",
        parameters={key: ModelParameter(string_value=value) for key, value in parameters.items()},
        model_transaction_policy=ModelTransactionPolicy(decoupled=False),
    )
    if batching is not None:
        config.dynamic_batching.preferred_batch_size.extend(batching.preferred)
        config.dynamic_batching.max_queue_delay_microseconds = round(batching.max_delay_ms * 1e3)
    for shapes in settings.warm_up:
        warm_up = config.model_warmup.add(name="warm-up", batch_size=0)
        for spec in model.inputs:
            warm_up.inputs[spec.name].data_type = _data_type(spec)
            warm_up.inputs[spec.name].dims.extend(shapes.get(spec.name, ()))
            warm_up.inputs[spec.name].zero_data = True
    return config


def infer_statistics(model: ServedModel) -> ModelStatistics:
    """Counts and times of a model's requests and runs."""
    counts = model.infer_statistics

    def duration(count: int, nanoseconds: int) -> StatisticDuration:
        return StatisticDuration(count=count, ns=nanoseconds)

    done = counts.success_count
    return ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=counts.last_inference_ms,
        inference_count=counts.inference_count,
        execution_count=counts.execution_count,
        inference_stats=InferStatistics(
            success=duration(done, counts.success_ns),
            fail=duration(counts.fail_count, counts.fail_ns),
            queue=duration(done, counts.queue_ns),
            compute_input=duration(done, counts.input_ns),
            compute_infer=duration(done, counts.infer_ns),
            compute_output=duration(done, counts.output_ns),
            cache_hit=duration(counts.cache_hits, counts.cache_hit_ns),
            cache_miss=duration(counts.cache_misses, counts.cache_miss_ns),
        ),
        batch_stats=[
            InferBatchStatistics(
                batch_size=size,
                compute_input=duration(batch.count, batch.input_ns),
                compute_infer=duration(batch.count, batch.infer_ns),
                compute_output=duration(batch.count, batch.output_ns),
            )
            for size, batch in sorted(counts.batches.items())
        ],
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
        last_mismatch=public_reason(counts.last_mismatch),
        first_difference=public_reason(counts.first_difference),
        unchecked=counts.unchecked,
        last_unchecked=public_reason(counts.last_unchecked),
    )


def _decode_typed(tensor: ModelInferRequest.InferInputTensor) -> Array:
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    expected = CONTENTS_FIELDS.get(tensor.datatype)
    wrong = [name for name in filled if name != expected]
    if expected is not None and wrong:
        raise TensorFormatError(f"{', '.join(wrong)} is filled; {tensor.datatype} belongs in {expected}")
    values = getattr(tensor.contents, expected) if expected is not None else ()
    return decode_contents(tensor.datatype, tensor.shape, values)


def with_meaning(where: str, datatype: str, array: Array) -> Array:
    """A decoded tensor as engines take it: bfloat16 patterns as numbers, BYTES as text.

    Raises:
        RequestError: a BYTES element is not UTF-8.
    """
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


def _parameters(where: str, parameters: Mapping[str, InferParameter]) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(value, kind)
    return found


def dims_of(spec: TensorSpec) -> list[int]:
    """A tensor's extents, -1 where one varies."""
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape or ()]


def _data_type(spec: TensorSpec) -> DataType:
    datatype = datatype_of(spec.dtype)
    return DataType.Value("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}")
