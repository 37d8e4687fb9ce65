"""The last stop of a message: submit a request to the scheduler, send its deltas as JSON or as server-sent events.

A client that disconnects ends its request: the slot is free before the next token.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from nanochat.chat.api_errors import ApiError
from nanochat.chat.prepare import PreparedRequest
from nanochat.chat.responses import chunks_of, first_chunks, usage_chunk, whole_response
from nanochat.chat.scheduler import Busy, Delta, GenerationRequest, Scheduler


class Submission:
    """One HTTP request in the scheduler's queue: its deltas in order, until all of its answers are complete or it is cancelled."""

    def __init__(self, scheduler: Scheduler, prepared: PreparedRequest):
        self.prepared = prepared
        self._scheduler = scheduler
        self._deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self._requests: list[GenerationRequest] = prepared.generation_requests(self._deltas.put_nowait)
        try:
            scheduler.submit(self._requests)
        except Busy as busy:
            raise ApiError(429, f"{busy.message}: {busy.hint}", "queue_full", retry_after=2) from busy

    async def deltas(self) -> AsyncIterator[Delta]:
        """Every answer's deltas as they come. Raises ApiError if the engine failed, or the request cannot be answered."""
        left = len(self._requests)
        while left:
            delta = await self._deltas.get()
            if delta.finish == "error" and delta.blamed:
                raise ApiError(400, delta.error, "invalid_json_schema", delta.blamed)
            if delta.finish == "error":
                raise ApiError(503, delta.error, "engine_failed", retry_after=2)
            left -= delta.finish is not None
            yield delta

    def cancel(self) -> None:
        """Free the slots of the answers that are not complete."""
        self._scheduler.cancel(self._requests)


class EventStream(Response):
    """The server-sent events of a submission, which ends when its client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, submission: Submission, include_usage: bool):
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.submission, self.include_usage = submission, include_usage

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events until all answers are complete or the client has disconnected."""
        sending = asyncio.ensure_future(self._send_events(send))
        leaving = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self.submission.cancel()
            for task in (sending, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _send_events(self, send: Any) -> None:
        prepared, total = self.submission.prepared, 0
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if first := first_chunks(prepared):
            await send(_body(_events(*first)))
        try:
            async for delta in self.submission.deltas():
                if chunks := chunks_of(prepared, delta):
                    await send(_body(_events(*chunks)))
                total += delta.completion_tokens if delta.finish else 0
            if self.include_usage:
                await send(_body(_events(usage_chunk(prepared, total))))
            end = b"data: [DONE]\n\n"
        except ApiError as error:
            await send(_body(_events(error.body())))
            end = b""
        await send({"type": "http.response.body", "body": end})


def _events(*values: dict[str, Any]) -> bytes:
    """JSON values as server-sent events."""
    return "".join(f"data: {json.dumps(value, ensure_ascii=False)}\n\n" for value in values).encode("utf-8", "replace")


def _body(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def whole(submission: Submission, request: Request, body: Callable[[Sequence[Delta]], dict[str, Any]] | None = None) -> Response:
    """The response of a submission that is not streamed; an empty one if the client has disconnected.

    `body` makes its JSON of all deltas (default: OpenAI's completion).
    """

    async def collect() -> dict[str, Any]:
        deltas = [delta async for delta in submission.deltas()]
        return body(deltas) if body else whole_response(submission.prepared, deltas)

    collecting, leaving = asyncio.ensure_future(collect()), asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(collecting.result()) if collecting.done() else Response(status_code=499)
    finally:
        submission.cancel()
        for task in (collecting, leaving):
            task.cancel()


async def _disconnect(receive: Any) -> None:
    """Wait until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
