"""`grpc.reflection.v1.ServerReflection` and v1alpha, whose messages are the same: what services there are.

Source: "GRPC Server Reflection Protocol" (server-reflection.md of gRPC).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, final

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
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
        self._pool = Default()

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

    def _answer(self, request: Any) -> Any:
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                names = [reflection_pb2.ServiceResponse(name=name) for name in self._services]
                listed = reflection_pb2.ListServiceResponse(service=names)
                return reflection_pb2.ServerReflectionResponse(list_services_response=listed)
            if kind == "file_by_filename":
                return _files(self._pool.FindFileByName(request.file_by_filename))
            if kind == "file_containing_symbol":
                name = request.file_containing_symbol
                # the v1 service has the messages of v1alpha, and only that one's file is here
                name = name.replace("grpc.reflection.v1.", "grpc.reflection.v1alpha.")
                return _files(self._pool.FindFileContainingSymbol(name))
            if kind == "file_containing_extension":
                asked = request.file_containing_extension
                owner = self._pool.FindMessageTypeByName(asked.containing_type)
                return _files(self._pool.FindExtensionByNumber(owner, asked.extension_number).file)
            if kind == "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                owner = self._pool.FindMessageTypeByName(name)
                numbers = [found.number for found in self._pool.FindAllExtensions(owner)]
                extensions = reflection_pb2.ExtensionNumberResponse(
                    base_type_name=name, extension_number=numbers
                )
                return reflection_pb2.ServerReflectionResponse(all_extension_numbers_response=extensions)
        except KeyError:
            return _error(_NOT_FOUND, "the server has nothing of this name")
        return _error(_INVALID_ARGUMENT, "the request asks for nothing")


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
