"""Commands whose policy's server is none, or whose folders were moved: one sentence, status 2, nothing lost."""

from __future__ import annotations

import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from command_line import deeprec, files
from deeprec.policies import openai

COMMANDS = (
    ["explore"],
    ["eval", "--users", "2"],
    ["demo", "--users", "2"],
    ["serve", "--set", "serve.port=0"],
    ["mcp"],
)
NAMES = [command[0] for command in COMMANDS]


class Handler(BaseHTTPRequestHandler):
    lists_models = False

    def do_GET(self):
        self.answer(b'{"data": [{"id": "m"}]}' if self.lists_models else b"<html>Welcome to nginx!</html>", 200)

    def do_POST(self):
        self.answer(b"<html>Not found</html>", 404)

    def answer(self, body, status):
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if body.startswith(b"{") else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(request, monkeypatch):
    monkeypatch.setattr(openai, "REFUSING", 1.0)
    handler = type("Asked", (Handler,), {"lists_models": getattr(request, "param", False)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


@pytest.fixture(autouse=True)
def on_interrupt():
    """`serve` and `mcp` change what Ctrl-C does."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def behind(url, model="m"):
    return ["--set", "policy.kind=openai", "--set", f"policy.url={url}", "--set", f"policy.model={model}"]


def refused(result, said):
    assert result.code == 2, result.out + result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("deeprec: ")
    assert said in last
    assert "Traceback" not in result.out + result.err


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_a_page_is_no_server(site, url, command):
    refused(site(*command, *behind(url)), "no OpenAI-compatible server")


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_where_nothing_listens_is_no_server(site, monkeypatch, command):
    monkeypatch.setattr(openai, "REFUSING", 0.5)
    refused(site(*command, *behind("http://127.0.0.1:9/v1")), "does not answer")


@pytest.mark.parametrize("url", [True], indirect=True)
@pytest.mark.parametrize("command", COMMANDS[:2], ids=NAMES[:2])
def test_a_server_that_can_not_write_is_a_failure(site, url, command):
    """It lists its models, and offers chats alone."""
    result = site(*command, *behind(url))
    refused(result, "status 404, with a page of HTML (a server of chats alone needs policy.api='chat')")
    assert result.out, "what there is comes first"


MOVED = ["--set", "policy.kind=transformers", "--set", "policy.adapter=runs/moved/recommendation"]


@pytest.mark.parametrize("command", [*COMMANDS, ["train"]], ids=[*NAMES, "train"])
def test_an_adapter_in_a_moved_folder(site, command):
    more = [word.replace("policy.adapter", "train.adapter") for word in MOVED] if command == ["train"] else MOVED
    refused(site(*command, *more), "'runs/moved/recommendation' is not there; if its run was moved, say where to")


def test_a_moved_runs_folder(site, tmp_path):
    """An evaluation is resumed where it lies now; where it was, there is none."""
    before, now = tmp_path / "runs", tmp_path / "archive"
    before.mkdir()
    (before / site.trained.name).symlink_to(site.trained)
    made = deeprec("eval", "--config", site.config, "--runs", before)
    assert made.code == 0, made.err
    (run,) = (path for path in before.iterdir() if path.name.endswith("-eval"))
    before.rename(now)
    again = deeprec("eval", "--resume", now / run.name)
    assert again.code == 0, again.err
    assert again.out.count("done before") >= 4
    assert deeprec("runs", "show", now / run.name).code == 0
    known = files(tmp_path)
    refused(deeprec("eval", "--resume", run), "is not an evaluation's folder")
    refused(deeprec("runs", "show", run), "is not a run's folder")
    refused(deeprec("runs", "compare", run, now / run.name), str(run))
    refused(deeprec("runs", "curves", run), str(run))
    assert files(tmp_path) == known
