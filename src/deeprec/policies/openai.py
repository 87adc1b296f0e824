"""A language model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, or a hosted one.

Each segment is a streamed request, a task of one event loop, which can be cancelled whatever it waits for. Stop strings
are found here: servers leave them out of the text, seldom say which came, and some know none. At a stop string or the
limit the stream is closed, and the server stops.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from deeprec.config import PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.explore.policy import Chunk, Finish, Policy, Request, Usage
from deeprec.policies.reasoning import RejoinedText, thought_of
from deeprec.policies.text import WordTokenizer, cut_at_stop
from deeprec.policies.tokenizer import brief, refuse_missing, refuse_unsupported

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

T = TypeVar("T")
_LOG = logging.getLogger("deeprec.policies")
KEY = "OPENAI_API_KEY"
TIMEOUT = 60.0  # seconds that a server may be silent. A request that it has not begun to answer is then repeated.
RETRIES = 3
REFUSING, LOADING = 30.0, 300.0
"""Seconds that a server may refuse connections, and answer that it is not ready, before there is one to talk to."""
_NOT_READY = (502, 503, 504)
_ENDS = {"": Finish.UNEXPLAINED, "length": Finish.LENGTH, "content_filter": Finish.FILTERED}
_FAILURES = ("abort", "error", "insufficient_system_resource")  # of SGLang and vLLM, OpenRouter, DeepSeek
_COUNTS: tuple[dict[str, Any], ...] = (
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"stream_options": {"include_usage": True}},
    {},
)
"""Ways to ask a server for its token counts, most detailed first; not all servers know each."""
_HINT = "Such a URL often ends in /v1."
_GLANCE = 0.1  # seconds that `step` waits for a silent server


@dataclass(eq=False)
class _Job:
    """A segment that the server is writing."""

    request: Request
    work: Future[None] | None = None
    written: int = 0


class OpenAIPolicy(WordTokenizer, Policy):
    """See the module. The server's tokenizer is unknown here, so each piece that it sends counts as one token.

    With `chat`, messages (the assistant's are those that the policy wrote) replace one text that is continued.
    """

    def __init__(
        self, client: AsyncOpenAI, model: str, *, chat: bool = False, context_limit: int = sys.maxsize
    ) -> None:
        self.client = client
        self.model = model
        self.chat = chat
        self.context_limit = context_limit
        self.seconds = {"wait": 0.0}
        self._jobs: dict[str, _Job] = {}
        self._chunks: queue.SimpleQueue[tuple[_Job, Chunk]] = queue.SimpleQueue()
        # By key, the ranges of the context that this policy wrote.
        self._written: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self._counts = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()

    @classmethod
    def load(cls, config: PolicyConfig) -> OpenAIPolicy:
        """The policy of a configuration, whose model the server must list; an empty name stands for its only model."""
        try:
            from openai import AsyncOpenAI
        except ImportError:
            refuse_missing("policy.kind='openai'", "the client", "--editable '.[openai]'")
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
        model, models = config.model, _models(config, settings)
        if not model and len(models) == 1:
            (model,) = models
        if model not in models:
            raise DeepRecError(f"policy.model={model!r} is none of those that {config.url} has: {', '.join(models)}.")
        return cls(AsyncOpenAI(**settings), model, chat=config.api == "chat", context_limit=models[model])

    def submit(self, requests: Sequence[Request]) -> None:
        refuse_unsupported(self, "openai", constrained=any(request.constraint for request in requests))
        for request in requests:
            self._drop(request.key)
            job = self._jobs[request.key] = _Job(request)
            job.work = asyncio.run_coroutine_threadsafe(self._work(job, self._body(request)), self._loop)

    def step(self) -> list[Chunk]:
        """See `Policy`. While the server is silent, an empty chunk, so that callers may start and stop explorations."""
        started = time.perf_counter()
        chunks: list[Chunk] = []
        while self._jobs and not (chunks and self._chunks.empty()):
            try:
                job, chunk = self._chunks.get(timeout=_GLANCE)
            except queue.Empty:
                chunks = [Chunk(next(iter(self._jobs)), (), ())]
                break
            if self._jobs.get(chunk.key) is job:
                chunks.append(chunk)
                job.written += len(chunk.tokens)
                if chunk.finish is not None:
                    del self._jobs[chunk.key]
                    start = len(job.request.context)
                    self._written[chunk.key].append((start, start + job.written))
        self.seconds["wait"] += time.perf_counter() - started
        return chunks

    def release(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._drop(key)
            self._written.pop(key, None)

    def _drop(self, key: str) -> None:
        if (job := self._jobs.pop(key, None)) is not None and job.work is not None:
            job.work.cancel()

    def _body(self, request: Request) -> dict[str, Any]:
        """The request as the server reads it."""
        body = {
            "model": self.model,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed % 2**31,
            "stream": True,
        }
        if not self.chat:
            return body | {"prompt": self.decode(request.context), "max_tokens": request.max_new_tokens}
        body["max_completion_tokens"] = request.max_new_tokens
        messages, position = [], 0
        for start, end in [*self._written[request.key], (len(request.context), len(request.context))]:
            for role, span in (("user", request.context[position:start]), ("assistant", request.context[start:end])):
                if span:
                    messages.append({"role": role, "content": self.decode(span)})
            position = end
        return body | {"messages": messages}

    async def _work(self, job: _Job, body: dict[str, Any]) -> None:
        """Queue what the server sends, in the loop's thread. The last chunk always has a finish."""
        try:
            async for chunk in self._segment(job.request, body):
                self._chunks.put((job, chunk))
        except Exception as error:  # noqa: BLE001 (whatever a foreign server makes the client raise)
            problem = f"{self.client.base_url}: {_brief(error, chat=self.chat)}"
            self._chunks.put((job, Chunk(job.request.key, (), (), Finish.FAILED, problem)))

    async def _segment(self, request: Request, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        text, written = "", 0
        joined, refused = RejoinedText(self.decode(request.context)), False
        finish: Finish | None = None
        usage: Any = None
        async with await self._open(body) as stream:
            async for sent in stream:
                usage = sent.usage or usage
                if not sent.choices:
                    continue
                choice = sent.choices[0]
                part = choice.delta if self.chat else choice
                content, thought = getattr(part, "content" if self.chat else "text", None) or "", thought_of(part)
                refused = refused or bool(getattr(part, "refusal", None))
                if choice.finish_reason or (choice.finish_reason is not None and finish is None):
                    finish = _finish(choice.finish_reason, refused)
                written += bool(content or thought)
                full = written == request.max_new_tokens
                piece = joined.add(thought, content) + (joined.rest() if full else "")
                start = len(text)
                text, stopped = cut_at_stop(text + piece, request.stops)
                if piece:
                    yield Chunk(request.key, tuple(self.piece(text[start:])), ())
                if stopped or full:
                    finish = Finish.STOP if stopped else Finish.LENGTH
                    break
        if finish is not Finish.STOP and (rest := joined.rest()):
            yield Chunk(request.key, tuple(self.piece(rest)), ())
        if finish is None:
            raise ConnectionError("the stream broke off")
        read, written = (usage.prompt_tokens, usage.completion_tokens) if usage else (len(request.context), written)
        yield Chunk(request.key, (), (), finish, usage=Usage(read, written))

    async def _open(self, body: dict[str, Any]) -> Any:
        from openai import BadRequestError, UnprocessableEntityError

        create: Any = self.client.chat.completions.create if self.chat else self.client.completions.create
        while True:
            tried = self._counts
            try:
                return await create(**body, **_COUNTS[tried])
            except (BadRequestError, UnprocessableEntityError) as error:
                if "stream_options" not in str(error) or tried == len(_COUNTS) - 1:
                    raise
                self._counts = max(self._counts, tried + 1)  # of several requests the furthest counts


def _finish(reason: str, refused: bool) -> Finish:
    """Why a server ended a text that no stop string ends; an exception where it failed."""
    if reason in _FAILURES:
        raise ConnectionError(f"the server gave up (finish_reason {reason!r})")
    return Finish.FILTERED if refused else _ENDS.get(reason, Finish.END)


def _models(config: PolicyConfig, settings: dict[str, Any]) -> dict[str, int]:
    """The context of each model that the server lists, once it is ready; of the configured one if it lists none."""
    from openai import APIStatusError, OpenAI

    where = f"policy.url={config.url!r}"
    try:
        with OpenAI(**settings | {"max_retries": 0}) as client:
            try:
                listed = _once_ready(lambda: _listed(client), where)
            except APIStatusError as error:
                if error.status_code != 404 or not config.model:  # not every server lists its models
                    raise DeepRecError(f"{where} refuses ({KEY} is the key): {_brief(error)}") from None
                _try_out(client, config)
                return {config.model: sys.maxsize}
    except DeepRecError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a foreign server or a wrong URL makes the client raise)
        raise DeepRecError(f"{where} does not answer: {_brief(error)}") from None
    if listed is None:
        raise DeepRecError(f"{where} is no OpenAI-compatible server: its /models is no list of models. {_HINT}")
    if not listed:
        raise DeepRecError(f"{where} has no model: load one into the server.")
    return listed


def _listed(client: OpenAI) -> dict[str, int] | None:
    """The context of each model; None where the answer is no list of models, as a page of HTML."""
    response = client.models.with_raw_response.list().http_response
    try:
        body = response.json()
    except ValueError:
        return None
    models = body.get("data", ()) if isinstance(body, dict) and "data" in body else body
    if models is None:  # Ollama, where there are none
        return {}
    if not isinstance(models, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in models):
        return None
    limits = {model["id"]: model.get("max_model_len") for model in models}
    return {name: limit if isinstance(limit, int) and limit > 0 else sys.maxsize for name, limit in limits.items()}


def _try_out(client: OpenAI, config: PolicyConfig) -> None:
    """Let a server that lists no models write a word, for its URL may be wrong; DeepRecError if it can't."""
    if config.api == "chat":
        create: Any = client.chat.completions.create
        said: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 1}
    else:
        create, said = client.completions.create, {"prompt": "Hi", "max_tokens": 1}
    try:
        with create(model=config.model, stream=True, **said) as stream:
            next(iter(stream), None)
    except Exception as error:  # noqa: BLE001 (as above)
        why = _brief(error, chat=config.api == "chat")
        raise DeepRecError(f"policy.url={config.url!r} lists no models, and does not write: {why}. {_HINT}") from None


def _once_ready(ask: Callable[[], T], where: str) -> T:
    """The answer of a server, which may be starting; says once that it waits."""
    from openai import APIConnectionError, APIStatusError

    started, said = time.monotonic(), False
    while True:
        try:
            return ask()
        except (APIConnectionError, APIStatusError) as error:
            loading = isinstance(error, APIStatusError) and error.status_code in _NOT_READY
            patience = LOADING if loading else REFUSING if _refused(error) else 0.0
            if time.monotonic() - started >= patience:
                raise
        if not said:
            state = "is not ready" if loading else "refuses connections"
            _LOG.warning("%s %s: waiting up to %.0f s for it (Ctrl-C ends this)", where, state, patience)
            said = True
        time.sleep(_GLANCE * 5)


def _refused(error: BaseException | None) -> bool:
    """Whether nothing listens there, now."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def _brief(error: Exception, *, chat: bool = True) -> str:
    """The cause on one line; of a page of HTML its status alone. `chat`: whether a chat was asked for."""
    status, body = getattr(error, "status_code", None), getattr(error, "body", None)
    if status is None:
        cause = error.__cause__
        return brief(cause if isinstance(cause, Exception) and str(cause) else error)
    page = isinstance(body, str) and body.lstrip().startswith("<")
    hint = "" if chat or status not in (404, 405) else " (a server of chats alone needs policy.api='chat')"
    return (f"status {status}, with a page of HTML" if page else brief(error)) + hint
