"""A language model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, or a hosted one.

Each segment is a streamed request. Stop strings are watched for here: servers leave them out of the text, seldom say
which of them came, and some know none. Where one comes, or the limit, the stream is closed, and the server stops. So it
is for who leaves, whatever is waited for: requests are tasks of one event loop, which can be cancelled anywhere.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeprec.config import PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.explore.policy import Chunk, Finish, Request, Usage
from deeprec.policies.text import WordTokenizer
from deeprec.policies.tokenizer import brief, refuse_constraints

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY = "OPENAI_API_KEY"
TIMEOUT = 60.0
"""Seconds that a server may be silent; a request that it has not begun to answer is then made again."""
RETRIES = 3
_COUNTS: tuple[dict[str, Any], ...] = (
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"stream_options": {"include_usage": True}},
    {},
)
"""How a server may be asked to count, most telling first; not all know each."""
_GLANCE = 0.1
"""Seconds that `step` waits for a silent server."""


@dataclass(frozen=True, slots=True)
class _News:
    """A piece of a segment, and at its end how it ended."""

    piece: str = ""
    finish: Finish | None = None
    usage: Usage | None = None
    error: str | None = None


@dataclass(eq=False)
class _Job:
    """A segment under way."""

    request: Request
    work: Future[None] | None = None
    written: int = 0


class OpenAIPolicy:
    """See the module. What a server sends at once counts as one token; the server's tokenizer is not known here.

    Args:
        client: where to ask, and how long to wait and how often to retry.
        model: as the server calls it.
        chat: speak in messages (what the policy wrote is the assistant's, all else the user's), and not by continuing
            one text.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        model: str,
        *,
        chat: bool = False,
        context_limit: int = sys.maxsize,
    ) -> None:
        self.client = client
        self.model = model
        self.chat = chat
        self.context_limit = context_limit
        self.seconds: dict[str, float] = {"wait": 0.0}
        self._words = WordTokenizer()
        self._jobs: dict[str, _Job] = {}
        self._news: queue.SimpleQueue[tuple[_Job, _News]] = queue.SimpleQueue()
        self._own: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        """By key, where in the context the segments are that this policy wrote."""
        self._counts = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()

    @classmethod
    def load(cls, config: PolicyConfig) -> OpenAIPolicy:
        """The policy of a configuration; the server is asked for its models.

        Raises:
            DeepRecError: there is no server, or it has no such model.
        """
        try:
            from openai import APIStatusError, AsyncOpenAI, OpenAI, OpenAIError
        except ImportError:
            raise DeepRecError("policy.kind='openai' needs the client: pip install --editable '.[openai]'.") from None
        if config.adapter not in ("shipped", "none"):
            raise DeepRecError("policy.adapter is for models in this process: let the server of policy.url load it.")
        if config.url is None:
            raise DeepRecError("policy.kind='openai' needs policy.url, as in http://127.0.0.1:8000/v1.")
        settings: dict[str, Any] = {
            "base_url": config.url,
            "api_key": os.environ.get(KEY) or "none",
            "timeout": TIMEOUT,
            "max_retries": RETRIES,
        }
        limit = sys.maxsize
        try:
            models = {model.id: model for model in OpenAI(**settings).models.list()}
        except APIStatusError as error:
            if error.status_code != 404:  # not every server lists its models
                raise DeepRecError(f"policy.url={config.url!r} refuses ({KEY} is the key): {brief(error)}") from None
        except (OpenAIError, ValueError) as error:
            raise DeepRecError(f"policy.url={config.url!r} does not answer: {brief(error)}") from None
        else:
            if config.model not in models:
                raise DeepRecError(
                    f"policy.model={config.model!r} is none of those that {config.url} has: {', '.join(models)}."
                )
            limit = (models[config.model].model_extra or {}).get("max_model_len") or limit
        client = AsyncOpenAI(**settings)
        return cls(client, config.model, chat=config.api == "chat", context_limit=limit)

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        return self._words.encode(text, first=first)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._words.decode(tokens)

    def submit(self, requests: Sequence[Request]) -> None:
        refuse_constraints(requests, "openai")
        for request in requests:
            self._drop(request.key)
            job = self._jobs[request.key] = _Job(request)
            job.work = asyncio.run_coroutine_threadsafe(self._work(job, self._asked(request)), self._loop)

    def step(self) -> list[Chunk]:
        """As every policy's; where the server lets one wait, an empty chunk, so that others may come and go."""
        started = time.perf_counter()
        chunks: list[Chunk] = []
        while self._jobs and not (chunks and self._news.empty()):
            try:
                job, news = self._news.get(timeout=_GLANCE)
            except queue.Empty:
                chunks = [Chunk(next(iter(self._jobs)), (), ())]
                break
            if self._jobs.get(job.request.key) is job:
                chunks.append(self._chunk(job, news))
        self.seconds["wait"] += time.perf_counter() - started
        return chunks

    def release(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._drop(key)
            self._own.pop(key, None)

    def _drop(self, key: str) -> None:
        job = self._jobs.pop(key, None)
        if job is not None and job.work is not None:
            job.work.cancel()

    def _chunk(self, job: _Job, news: _News) -> Chunk:
        key = job.request.key
        tokens = tuple(self._words.piece(news.piece))
        job.written += len(tokens)
        if news.finish is not None:
            del self._jobs[key]
            start = len(job.request.context)
            self._own[key].append((start, start + job.written))
        return Chunk(key, tokens, (), news.finish, news.error, news.usage)

    def _asked(self, request: Request) -> dict[str, Any]:
        """The request as the server reads it."""
        asked = {
            "model": self.model,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed % 2**31,
            "stream": True,
        }
        if not self.chat:
            return asked | {"prompt": self.decode(request.context), "max_tokens": request.max_new_tokens}
        asked["max_completion_tokens"] = request.max_new_tokens
        messages, position = [], 0
        for start, end in [*self._own[request.key], (len(request.context), len(request.context))]:
            for role, span in (("user", request.context[position:start]), ("assistant", request.context[start:end])):
                if span:
                    messages.append({"role": role, "content": self.decode(span)})
            position = end
        return asked | {"messages": messages}

    async def _work(self, job: _Job, asked: dict[str, Any]) -> None:
        """In the loop's thread: hand on what the server sends. The last of the news always has a finish."""
        try:
            async for news in self._segment(job.request, asked):
                self._news.put((job, news))
        except Exception as error:  # noqa: BLE001 (whatever a foreign server makes the client raise)
            self._news.put((job, _News(finish=Finish.FAILED, error=f"{self.client.base_url}: {brief(error)}")))

    async def _segment(self, request: Request, asked: dict[str, Any]) -> AsyncIterator[_News]:
        text, written = "", 0
        finish: Finish | None = None
        told: Any = None
        async with await self._open(asked) as stream:
            async for event in stream:
                told = event.usage or told
                if not event.choices:
                    continue
                choice = event.choices[0]
                piece = (choice.delta.content if self.chat else choice.text) or ""
                hidden = self.chat and getattr(choice.delta, "reasoning_content", None)
                if choice.finish_reason is not None:
                    finish = Finish.LENGTH if choice.finish_reason == "length" else Finish.END
                ends = [at + len(stop) for stop in request.stops if (at := (text + piece).find(stop)) >= 0]
                if ends:
                    piece, finish = piece[: min(ends) - len(text)], Finish.STOP
                text += piece
                written += bool(piece or hidden)
                if not ends and written == request.max_new_tokens:
                    finish = Finish.LENGTH
                if piece:
                    yield _News(piece)
                if ends or written == request.max_new_tokens:
                    break
        if finish is None:
            raise ConnectionError("the stream broke off")
        read, written = (told.prompt_tokens, told.completion_tokens) if told else (len(request.context), written)
        yield _News(finish=finish, usage=Usage(read, written))

    async def _open(self, asked: dict[str, Any]) -> Any:
        from openai import BadRequestError, UnprocessableEntityError

        create: Any = self.client.chat.completions.create if self.chat else self.client.completions.create
        for position in range(self._counts, len(_COUNTS)):
            try:
                return await create(**asked, **_COUNTS[position])
            except (BadRequestError, UnprocessableEntityError) as error:
                if "stream_options" not in str(error):
                    raise
                self._counts = max(self._counts, position + 1)  # of several requests the furthest counts
        raise ValueError("the server refuses stream_options that were not sent")
