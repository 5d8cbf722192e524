"""`grpc.reflection.v1.ServerReflection` and v1alpha, whose messages are the same: what services there are.

Source: "GRPC Server Reflection Protocol" (server-reflection.md of gRPC).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, final

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from onward_server.grpc_calls import Call, CallFailed, StreamMethod

__all__ = ["Reflection"]

_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_NOT_FOUND = 5
_INVALID_ARGUMENT = 3


@final
class Reflection:
    """Answers about services whose descriptors are in the default pool.

    Args:
        services: their full names.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = sorted((*services, *_SERVICES))
        self._pools = (Default(), _pool_of_v1())

    def methods(self) -> dict[str, StreamMethod]:
        """By path."""
        return {f"/{service}/ServerReflectionInfo": self._info for service in _SERVICES}

    async def _info(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for data in requests:
            try:
                request = reflection_pb2.ServerReflectionRequest.FromString(data)
            except (DecodeError, UnicodeDecodeError, ValueError):
                raise CallFailed("INVALID_ARGUMENT", "this is no ServerReflectionRequest message") from None
            answer = self._answer(request)
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer.SerializeToString()

    def _file(self, name: str, method: str) -> Any:
        """What a pool's method finds, of the first one that knows the name. Raises KeyError."""
        for pool in self._pools[:-1]:
            with contextlib.suppress(KeyError):
                return getattr(pool, method)(name)
        return getattr(self._pools[-1], method)(name)

    def _answer(self, request: Any) -> Any:
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                names = [reflection_pb2.ServiceResponse(name=name) for name in self._services]
                listed = reflection_pb2.ListServiceResponse(service=names)
                return reflection_pb2.ServerReflectionResponse(list_services_response=listed)
            if kind == "file_by_filename":
                return _files(self._file(request.file_by_filename, "FindFileByName"))
            if kind == "file_containing_symbol":
                symbol, found = request.file_containing_symbol, "FindFileContainingSymbol"
                try:
                    return _files(self._file(symbol, found))
                except KeyError:
                    # of methods and fields a pool knows the owner
                    return _files(self._file(symbol.rpartition(".")[0], found))
            if kind == "file_containing_extension":
                asked = request.file_containing_extension
                owner = self._pools[0].FindMessageTypeByName(asked.containing_type)
                return _files(self._pools[0].FindExtensionByNumber(owner, asked.extension_number).file)
            if kind == "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                owner = self._pools[0].FindMessageTypeByName(name)
                numbers = [found.number for found in self._pools[0].FindAllExtensions(owner)]
                extensions = reflection_pb2.ExtensionNumberResponse(
                    base_type_name=name, extension_number=numbers
                )
                return reflection_pb2.ServerReflectionResponse(all_extension_numbers_response=extensions)
        except KeyError:
            return _error(_NOT_FOUND, "the server has nothing of this name")
        return _error(_INVALID_ARGUMENT, "the request asks for nothing")


def _pool_of_v1() -> DescriptorPool:
    """The v1 service: gRPC's package has the file of v1alpha alone, whose messages are the same."""
    proto = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(proto)
    proto.name = "grpc/reflection/v1/reflection.proto"
    proto.package = "grpc.reflection.v1"
    old, new = ".grpc.reflection.v1alpha.", ".grpc.reflection.v1."
    for message in proto.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(old, new)
    for service in proto.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    pool = DescriptorPool()
    pool.AddSerializedFile(proto.SerializeToString())
    return pool


def _error(code: int, text: str) -> Any:
    failure = reflection_pb2.ErrorResponse(error_code=code, error_message=text)
    return reflection_pb2.ServerReflectionResponse(error_response=failure)


def _files(file: Any) -> Any:
    """A file and everything that it imports, as clients need it."""
    found: dict[str, bytes] = {}
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current.name not in found:
            proto = FileDescriptorProto()
            current.CopyToProto(proto)
            found[current.name] = proto.SerializeToString()
            waiting += current.dependencies
    answer = reflection_pb2.FileDescriptorResponse(file_descriptor_proto=list(found.values()))
    return reflection_pb2.ServerReflectionResponse(file_descriptor_response=answer)
