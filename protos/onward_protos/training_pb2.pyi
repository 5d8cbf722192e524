from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StartJobRequest(_message.Message):
    __slots__ = ("model", "version", "json", "toml", "title")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    TOML_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    json: str
    toml: str
    title: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., json: _Optional[str] = ..., toml: _Optional[str] = ..., title: _Optional[str] = ...) -> None: ...

class StartStreamRequest(_message.Message):
    __slots__ = ("start", "batch")
    START_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    start: StartJobRequest
    batch: Batch
    def __init__(self, start: _Optional[_Union[StartJobRequest, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("tensors",)
    class Tensor(_message.Message):
        __slots__ = ("name", "datatype", "shape", "raw")
        NAME_FIELD_NUMBER: _ClassVar[int]
        DATATYPE_FIELD_NUMBER: _ClassVar[int]
        SHAPE_FIELD_NUMBER: _ClassVar[int]
        RAW_FIELD_NUMBER: _ClassVar[int]
        name: str
        datatype: str
        shape: _containers.RepeatedScalarFieldContainer[int]
        raw: bytes
        def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., raw: _Optional[bytes] = ...) -> None: ...
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Batch.Tensor]
    def __init__(self, tensors: _Optional[_Iterable[_Union[Batch.Tensor, _Mapping]]] = ...) -> None: ...

class JobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("state", "limit")
    STATE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    state: str
    limit: int
    def __init__(self, state: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("id", "after")
    ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    id: str
    after: int
    def __init__(self, id: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("sequence", "time", "kind", "json")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: float
    kind: str
    json: str
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[float] = ..., kind: _Optional[str] = ..., json: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "state", "title", "reason", "configuration", "parent_model", "parent_version", "created", "started", "ended", "epoch", "epochs", "step", "figures", "resumable", "last_event", "sha256", "data_hash")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    PARENT_MODEL_FIELD_NUMBER: _ClassVar[int]
    PARENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_HASH_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: str
    title: str
    reason: str
    configuration: str
    parent_model: str
    parent_version: str
    created: float
    started: float
    ended: float
    epoch: int
    epochs: int
    step: int
    figures: _containers.ScalarMap[str, float]
    resumable: bool
    last_event: int
    sha256: str
    data_hash: str
    def __init__(self, id: _Optional[str] = ..., state: _Optional[str] = ..., title: _Optional[str] = ..., reason: _Optional[str] = ..., configuration: _Optional[str] = ..., parent_model: _Optional[str] = ..., parent_version: _Optional[str] = ..., created: _Optional[float] = ..., started: _Optional[float] = ..., ended: _Optional[float] = ..., epoch: _Optional[int] = ..., epochs: _Optional[int] = ..., step: _Optional[int] = ..., figures: _Optional[_Mapping[str, float]] = ..., resumable: bool = ..., last_event: _Optional[int] = ..., sha256: _Optional[str] = ..., data_hash: _Optional[str] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("id", "model", "version", "data", "part")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    version: str
    data: str
    part: str
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., data: _Optional[str] = ..., part: _Optional[str] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("figures", "samples", "confusion", "classes", "cross_check")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    CROSS_CHECK_FIELD_NUMBER: _ClassVar[int]
    figures: _containers.ScalarMap[str, float]
    samples: int
    confusion: _containers.RepeatedScalarFieldContainer[int]
    classes: _containers.RepeatedScalarFieldContainer[str]
    cross_check: CheckResult
    def __init__(self, figures: _Optional[_Mapping[str, float]] = ..., samples: _Optional[int] = ..., confusion: _Optional[_Iterable[int]] = ..., classes: _Optional[_Iterable[str]] = ..., cross_check: _Optional[_Union[CheckResult, _Mapping]] = ...) -> None: ...

class CheckResult(_message.Message):
    __slots__ = ("passed", "max_absolute_error", "difference")
    PASSED_FIELD_NUMBER: _ClassVar[int]
    MAX_ABSOLUTE_ERROR_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    passed: bool
    max_absolute_error: float
    difference: str
    def __init__(self, passed: bool = ..., max_absolute_error: _Optional[float] = ..., difference: _Optional[str] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("id", "model", "at_least", "at_most", "allow_other_interface")
    class AtLeastEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class AtMostEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    ALLOW_OTHER_INTERFACE_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    at_least: _containers.ScalarMap[str, float]
    at_most: _containers.ScalarMap[str, float]
    allow_other_interface: bool
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., at_least: _Optional[_Mapping[str, float]] = ..., at_most: _Optional[_Mapping[str, float]] = ..., allow_other_interface: bool = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("model", "withdrawn", "serving")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    model: str
    withdrawn: str
    serving: str
    def __init__(self, model: _Optional[str] = ..., withdrawn: _Optional[str] = ..., serving: _Optional[str] = ...) -> None: ...

class GetLineageRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetLineageResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[Lineage]
    def __init__(self, versions: _Optional[_Iterable[_Union[Lineage, _Mapping]]] = ...) -> None: ...

class Lineage(_message.Message):
    __slots__ = ("model", "version", "job", "parent_model", "parent_version", "data_hash", "configuration", "metrics", "sha256", "promoted", "withdrawn", "cross_check")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    PARENT_MODEL_FIELD_NUMBER: _ClassVar[int]
    PARENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DATA_HASH_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    CROSS_CHECK_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    job: str
    parent_model: str
    parent_version: str
    data_hash: str
    configuration: str
    metrics: _containers.ScalarMap[str, float]
    sha256: str
    promoted: float
    withdrawn: float
    cross_check: CheckResult
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., job: _Optional[str] = ..., parent_model: _Optional[str] = ..., parent_version: _Optional[str] = ..., data_hash: _Optional[str] = ..., configuration: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., sha256: _Optional[str] = ..., promoted: _Optional[float] = ..., withdrawn: _Optional[float] = ..., cross_check: _Optional[_Union[CheckResult, _Mapping]] = ...) -> None: ...

class GetParametersRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Parameters(_message.Message):
    __slots__ = ("model", "version", "entries", "buffer")
    class Entry(_message.Message):
        __slots__ = ("name", "shape")
        NAME_FIELD_NUMBER: _ClassVar[int]
        SHAPE_FIELD_NUMBER: _ClassVar[int]
        name: str
        shape: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    entries: _containers.RepeatedCompositeFieldContainer[Parameters.Entry]
    buffer: bytes
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., entries: _Optional[_Iterable[_Union[Parameters.Entry, _Mapping]]] = ..., buffer: _Optional[bytes] = ...) -> None: ...

class SetParametersRequest(_message.Message):
    __slots__ = ("model", "version", "buffer", "title")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    buffer: bytes
    title: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., buffer: _Optional[bytes] = ..., title: _Optional[str] = ...) -> None: ...

class SubmitDeltaRequest(_message.Message):
    __slots__ = ("model", "version", "round", "contributor", "weight", "buffer")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTOR_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    round: str
    contributor: str
    weight: float
    buffer: bytes
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., round: _Optional[str] = ..., contributor: _Optional[str] = ..., weight: _Optional[float] = ..., buffer: _Optional[bytes] = ...) -> None: ...

class SubmitDeltaResponse(_message.Message):
    __slots__ = ("contributors", "weight")
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    contributors: int
    weight: float
    def __init__(self, contributors: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...

class AverageDeltasRequest(_message.Message):
    __slots__ = ("model", "version", "round", "at_least", "title")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    round: str
    at_least: int
    title: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., round: _Optional[str] = ..., at_least: _Optional[int] = ..., title: _Optional[str] = ...) -> None: ...
