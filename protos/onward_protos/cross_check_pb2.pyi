from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatisticsRequest(_message.Message):
    __slots__ = ("model_name", "model_version")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class GetStatisticsResponse(_message.Message):
    __slots__ = ("statistics",)
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    statistics: _containers.RepeatedCompositeFieldContainer[CrossCheckStatistics]
    def __init__(self, statistics: _Optional[_Iterable[_Union[CrossCheckStatistics, _Mapping]]] = ...) -> None: ...

class CrossCheckStatistics(_message.Message):
    __slots__ = ("model_name", "model_version", "policy", "on_mismatch", "requests", "checks", "passed", "failed", "skipped", "dropped", "max_absolute_error", "max_relative_error", "last_mismatch", "unchecked", "first_difference", "last_unchecked")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ON_MISMATCH_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    MAX_ABSOLUTE_ERROR_FIELD_NUMBER: _ClassVar[int]
    MAX_RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    LAST_MISMATCH_FIELD_NUMBER: _ClassVar[int]
    UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    FIRST_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    policy: str
    on_mismatch: str
    requests: int
    checks: int
    passed: int
    failed: int
    skipped: int
    dropped: int
    max_absolute_error: float
    max_relative_error: float
    last_mismatch: str
    unchecked: int
    first_difference: str
    last_unchecked: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., policy: _Optional[str] = ..., on_mismatch: _Optional[str] = ..., requests: _Optional[int] = ..., checks: _Optional[int] = ..., passed: _Optional[int] = ..., failed: _Optional[int] = ..., skipped: _Optional[int] = ..., dropped: _Optional[int] = ..., max_absolute_error: _Optional[float] = ..., max_relative_error: _Optional[float] = ..., last_mismatch: _Optional[str] = ..., unchecked: _Optional[int] = ..., first_difference: _Optional[str] = ..., last_unchecked: _Optional[str] = ...) -> None: ...
