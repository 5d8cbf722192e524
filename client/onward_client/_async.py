"""The asyncio client."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar, final

import grpc

from onward_client._calls import ProtocolCalls
from onward_client._conversations import Call, Conversation, later
from onward_client._training import AsyncTraining
from onward_client._transport import (
    MAX_MESSAGE_BYTES,
    channel_options,
    credentials_of,
    error_of,
    metadata_of,
    timeout_of,
)
from onward_client.errors import ClientError

__all__ = ["AsyncClient"]

_T = TypeVar("_T")


@final
class AsyncClient:
    """Calls a server of the Open Inference Protocol from one event loop.

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
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )

    @property
    def training(self) -> AsyncTraining:
        """The training jobs of an Onward server."""
        return AsyncTraining(self)

    server_live = later(ProtocolCalls.server_live)
    server_ready = later(ProtocolCalls.server_ready)
    wait_until_ready = later(ProtocolCalls.wait_until_ready)
    model_ready = later(ProtocolCalls.model_ready)
    server_metadata = later(ProtocolCalls.server_metadata)
    metadata = later(ProtocolCalls.metadata)
    config = later(ProtocolCalls.config)
    statistics = later(ProtocolCalls.statistics)
    cross_checks = later(ProtocolCalls.cross_checks)
    repository = later(ProtocolCalls.repository)
    load = later(ProtocolCalls.load)
    unload = later(ProtocolCalls.unload)
    predict = later(ProtocolCalls.predict)
    infer = later(ProtocolCalls.infer)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, conversation: Conversation[_T]) -> _T:
        deadline = time.monotonic() + timeout_of(conversation.timeout, self._timeout)
        calls = conversation.calls
        try:
            call = next(calls)
            while True:
                call = calls.send(await self._call(call, deadline))
        except StopIteration as end:
            result: _T = end.value
            return result
        except ClientError as error:
            self._asks.forget(error)
            raise

    async def _call(self, call: Call, deadline: float) -> Any:
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
            return await method(sent, timeout=timeout, wait_for_ready=call.wait, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if failure:
                raise failure[0] from None
            raise error_of(error, call.subject, self.address, call.missing) from None

    async def _watch(self, call: Call, timeout: float | None) -> AsyncIterator[Any]:
        method = self._channel.unary_stream(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response_type.FromString,
        )
        answers = method(call.request, timeout=timeout, metadata=self._metadata)
        try:
            async for answer in answers:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise error_of(error, call.subject, self.address, call.missing) from None
        finally:
            answers.cancel()


async def _messages(call: Call, failure: list[BaseException]) -> AsyncIterator[Any]:
    """What a stream sends; an error of where that comes from goes into `failure`."""
    try:
        yield call.request
        if isinstance(call.further, AsyncIterable):
            async for message in call.further:
                yield message
        else:
            for message in call.further or ():
                yield message
    except BaseException as error:
        failure.append(error)
        raise
