"""The asyncio client."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, final

import grpc

from onward_client._calls import Call, Conversation, Conversations, Inputs
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
from onward_client.types import (
    Array,
    CrossCheckStatistics,
    InferResult,
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
)

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
        self._conversations = Conversations()
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
        return AsyncTraining(self._run, self._watch, self._send)

    async def server_live(self, *, timeout: float | None = None) -> bool:
        """Whether the server answers at all."""
        return await self._run(self._conversations.server_live(), timeout)

    async def server_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server takes requests."""
        return await self._run(self._conversations.server_ready(), timeout)

    async def wait_until_ready(self, timeout: float) -> bool:
        """Like `server_ready`, but waits up to `timeout` s for a server that cannot be reached yet."""
        return await self._run(self._conversations.server_ready(wait=True), timeout)

    async def model_ready(self, model: str, version: str = "", *, timeout: float | None = None) -> bool:
        """Whether a model, or one version of it, takes requests; False for an unknown one."""
        return await self._run(self._conversations.model_ready(model, version), timeout)

    async def server_metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """The server's name, version and extensions."""
        return await self._run(self._conversations.server_metadata(), timeout)

    async def metadata(self, model: str, version: str = "", *, timeout: float | None = None) -> ModelMetadata:
        """A model's versions, inputs and outputs. Raises ModelNotFoundError."""
        return await self._run(self._conversations.metadata(model, version), timeout)

    async def config(self, model: str, version: str = "", *, timeout: float | None = None) -> ModelConfig:
        """How a model is served. Raises ModelNotFoundError."""
        return await self._run(self._conversations.config(model, version), timeout)

    async def statistics(
        self, model: str = "", version: str = "", *, timeout: float | None = None
    ) -> tuple[ModelStatistics, ...]:
        """Counts and times of a model's versions, or of all models. Raises ModelNotFoundError."""
        return await self._run(self._conversations.statistics(model, version), timeout)

    async def cross_checks(
        self, model: str = "", version: str = "", *, timeout: float | None = None
    ) -> tuple[CrossCheckStatistics, ...]:
        """What an Onward server's cross-checks found. Raises ModelNotFoundError."""
        return await self._run(self._conversations.cross_checks(model, version), timeout)

    async def predict(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Ask a model for its outputs.

        Args:
            model: its name.
            inputs: arrays by name; a list or tuple with one entry for each input, in the model's order; or
                the array of a model with one input. An array keeps its dtype, and the server refuses one
                that does not fit. Python lists and scalars take the model's datatype: int to integer types
                that hold it and to floating-point types, float to floating-point types only.
            outputs: names of the outputs wanted; None: all.
            version: "" for the latest.
            timeout: seconds; None: the client's.

        Returns:
            Arrays by name. BYTES come as object arrays of `bytes`, BF16 as float32.

        Raises:
            InvalidRequestError: the inputs or outputs do not fit the model.
            ModelNotFoundError: no such model or version.
            DeadlineExceededError: no answer in time.
            CrossCheckError: the server's engines disagree, and its policy is to refuse then.
            ClientError: see `onward_client.errors` for the others.
        """
        result = await self.infer(model, inputs, outputs, version, timeout)
        return result.outputs

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout: float | None = None,
        request_id: str = "",
    ) -> InferResult:
        """Like `predict`, with everything that the answer tells."""
        conversation = self._conversations.infer(model, inputs, outputs, version, request_id)
        return await self._run(conversation, timeout)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, conversation: Conversation[_T], timeout: float | None) -> _T:
        deadline = time.monotonic() + timeout_of(timeout, self._timeout)
        try:
            call = next(conversation)
            while True:
                call = conversation.send(await self._call(call, deadline))
        except StopIteration as end:
            result: _T = end.value
            return result
        except ClientError as error:
            self._conversations.forget(error)
            raise

    async def _call(self, call: Call, deadline: float) -> Any:
        method = self._channel.unary_unary(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response_type.FromString,
        )
        timeout = max(deadline - time.monotonic(), 0.0)
        try:
            return await method(
                call.request, timeout=timeout, wait_for_ready=call.wait, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
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

    async def _send(self, call: Call, requests: AsyncIterator[Any], timeout: float | None) -> Any:
        method = self._channel.stream_unary(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response_type.FromString,
        )
        # an error of the caller's own iterator is raised as it is; gRPC would turn it into its own
        failure: list[BaseException] = []

        async def guarded() -> AsyncIterator[Any]:
            try:
                async for request in requests:
                    yield request
            except BaseException as error:
                failure.append(error)
                raise

        seconds = timeout_of(timeout, self._timeout)
        try:
            return await method(guarded(), timeout=seconds, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if failure:
                raise failure[0] from None
            raise error_of(error, call.subject, self.address, call.missing) from None
