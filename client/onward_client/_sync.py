"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, final

import grpc

from onward_client._calls import ProtocolCalls
from onward_client._conversations import Call, Conversation, now
from onward_client._training import Training
from onward_client._transport import (
    MAX_MESSAGE_BYTES,
    channel_options,
    credentials_of,
    error_of,
    metadata_of,
    timeout_of,
)
from onward_client.errors import ClientError, InvalidRequestError

__all__ = ["Client"]

_T = TypeVar("_T")


@final
class Client:
    """Calls a server of the Open Inference Protocol; safe to share between threads.

    Args:
        address: `host:port` or `unix:/path`.
        timeout: seconds that a call may take when it is not told otherwise.
        tls: True for TLS with the system's root certificates, root certificates in PEM, or credentials;
            False for plain text.
        max_message_bytes: bound on a message in either direction.
        key: sent with each call as `authorization: Bearer`; None: no key.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 60.0,
        tls: bool | bytes | grpc.ChannelCredentials = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        key: str | None = None,
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._asks = ProtocolCalls()
        self._metadata = metadata_of(key)
        credentials = credentials_of(tls)
        options = channel_options(max_message_bytes)
        self._channel = (
            grpc.insecure_channel(address, options=options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=options)
        )

    @property
    def training(self) -> Training:
        """The training jobs of an Onward server."""
        return Training(self)

    server_live = now(ProtocolCalls.server_live)
    server_ready = now(ProtocolCalls.server_ready)
    wait_until_ready = now(ProtocolCalls.wait_until_ready)
    model_ready = now(ProtocolCalls.model_ready)
    server_metadata = now(ProtocolCalls.server_metadata)
    metadata = now(ProtocolCalls.metadata)
    config = now(ProtocolCalls.config)
    statistics = now(ProtocolCalls.statistics)
    cross_checks = now(ProtocolCalls.cross_checks)
    repository = now(ProtocolCalls.repository)
    load = now(ProtocolCalls.load)
    unload = now(ProtocolCalls.unload)
    predict = now(ProtocolCalls.predict)
    infer = now(ProtocolCalls.infer)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, conversation: Conversation[_T]) -> _T:
        deadline = time.monotonic() + timeout_of(conversation.timeout, self._timeout)
        calls = conversation.calls
        try:
            call = next(calls)
            while True:
                call = calls.send(self._call(call, deadline))
        except StopIteration as end:
            result: _T = end.value
            return result
        except ClientError as error:
            self._asks.forget(error)
            raise

    def _call(self, call: Call, deadline: float) -> Any:
        # an error of the caller's own iterator is raised as it is; gRPC would turn it into its own
        failure: list[BaseException] = []
        method = (self._channel.unary_unary if call.further is None else self._channel.stream_unary)(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response_type.FromString,
        )
        sent = call.request if call.further is None else _messages(call, failure)
        timeout = max(deadline - time.monotonic(), 0.0)
        try:
            return method(sent, timeout=timeout, wait_for_ready=call.wait, metadata=self._metadata)
        except grpc.RpcError as error:
            if failure:
                raise failure[0] from None
            raise error_of(error, call.subject, self.address, call.missing) from None

    def _watch(self, call: Call, timeout: float | None) -> Iterator[Any]:
        method = self._channel.unary_stream(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response_type.FromString,
        )
        answers = method(call.request, timeout=timeout, metadata=self._metadata)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise error_of(error, call.subject, self.address, call.missing) from None
        finally:
            answers.cancel()


def _messages(call: Call, failure: list[BaseException]) -> Iterator[Any]:
    """What a stream sends; an error of where that comes from goes into `failure`."""
    further = call.further or ()
    if isinstance(further, AsyncIterable):
        raise InvalidRequestError(f"{call.subject}: an asynchronous iterator needs AsyncClient")

    def messages() -> Iterator[Any]:
        try:
            yield call.request
            yield from further
        except BaseException as error:
            failure.append(error)
            raise

    return messages()
