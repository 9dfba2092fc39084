"""From the thread that answers to the clients that wait: events, then the answer or an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from fastapi.responses import StreamingResponse

from research_rl.agents import ModelUnavailable, Prediction
from research_rl.agents.web import QueueFullError
from research_rl.envs import RetrieverUnavailable
from research_rl.envs.web import Refused
from research_rl.trainers.agent.asker import NobodyWaitsError
from research_rl.trainers.agent.events import EpisodeEvents, Event
from research_rl.trainers.agent.question_queue import Inquiry, QuestionQueue

log = logging.getLogger(__name__)


class Telling:
    """One question that is being answered; to be made in the event loop.

    Args:
        queue: answers.
        inquiry: the question.
        field: of the request, in which the question stands.

    Raises:
        Refused: the question cannot be answered, with the field; or the server is busy.
    """

    def __init__(self, queue: QuestionQueue, inquiry: Inquiry, field: str) -> None:
        self._queue, self._loop = queue, asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()  # None is the end
        episode = EpisodeEvents(self._put, queue.asker.protocol)
        try:
            queue.check_room()  # before the question is looked at, which takes longer
            queue.asker.check(inquiry.question, inquiry.params)
        except QueueFullError as error:
            raise Refused(f"{error}; ask again later", 429) from error
        except ValueError as error:
            raise Refused(f"{field} {error}") from error
        self.notes = queue.asker.notes(inquiry.question)
        """What is told before the answer; the first events."""
        for note in self.notes:
            self._events.put_nowait({"event": "note", "text": note})
        try:
            self._job = queue.submit(inquiry, episode)
        except QueueFullError as error:
            raise Refused(f"{error}; ask again later", 429) from error
        except ValueError as error:
            raise Refused(str(error), 503) from error

        def ended(job: object) -> None:
            episode.end()
            self._put(None)

        self._job.add_done_callback(ended)

    async def events(self, seconds: float) -> AsyncIterator[Event]:
        """Yield what happens, as it happens, up to the answer.

        Raises:
            Refused: with status 504, it takes longer than ``seconds``.
        """
        end = self._loop.time() + seconds
        while True:
            left = max(0.0, end - self._loop.time())
            try:
                async with asyncio.timeout(left):
                    event = await self._events.get()
            except TimeoutError as error:
                raise Refused(f"no answer within {seconds:g} s", 504) from error
            if event is None:
                return
            yield event

    async def answer(self, seconds: float) -> Prediction:
        """Return the answer, passing over what has not been heard of its way.

        Raises:
            Refused: there is none.
        """
        async for _ in self.events(seconds):
            """They lead to it."""
        return self.result()

    def result(self) -> Prediction:
        """Return the answer, which must be there.

        Raises:
            Refused: there is none, and why.
        """
        try:
            return self._job.result(0)
        except CancelledError as error:
            raise Refused("the server is stopping", 503) from error
        except NobodyWaitsError as error:
            raise Refused(str(error), 499) from error
        except (RetrieverUnavailable, ModelUnavailable) as error:
            raise Refused(str(error), 503) from error
        except Exception as error:
            log.exception("a question was not answered")
            raise Refused(f"{type(error).__name__}: {error}", 500) from error

    def drop(self) -> None:
        """Give the question up, unless it is answered."""
        self._queue.drop(self._job)

    def _put(self, event: Event | None) -> None:
        """Hand an event over from the thread that answers."""
        with suppress(RuntimeError):  # the loop is closed, and nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Streamed(StreamingResponse):
    """A response in pieces, after which something is done however it ends.

    Args:
        pieces: of the body.
        ended: called when all were sent, or the client is gone.
        media_type: of the body.
    """

    def __init__(
        self, pieces: AsyncIterator[bytes], ended: Callable[[], None], media_type: str
    ) -> None:
        headers: Mapping[str, str] = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(pieces, headers=headers, media_type=media_type)
        self._ended = ended

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()
