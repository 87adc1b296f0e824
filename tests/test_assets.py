"""Assets against a real local server, real pip and real processes; SmolLM2 itself under the marker `llm`."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deeprec import assets, cli
from deeprec.assets import Asset, downloads
from deeprec.assets import cache as asset_cache
from deeprec.assets.downloads import File, Hub, Source, WebArchive, Wheel
from deeprec.errors import DeepRecError

BODY = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()
SOURCE_ROOT = Path(assets.__file__).resolve().parents[2]


class Server:
    """A local web server; each path answers as `pages` says, and `requests` counts who asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.requests: Counter[str] = Counter()
        self.closing = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests[self.path] += 1
                page = outer.pages.get(self.path)
                try:
                    if page is None:
                        self.send_error(404)
                    else:
                        page(self)
                except OSError:
                    pass  # the client went away, as some tests intend

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def serve(self, path: str, body: bytes, *, claimed: int | None = None, pause: float = 0.0) -> None:
        """Answer `body`; `claimed` lies about its length, `pause` waits (s) between pieces of 4 KiB."""

        def page(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body) if claimed is None else claimed))
            handler.send_header("Content-Type", "text/html" if path.endswith("/") else "application/zip")
            handler.end_headers()
            step = 4096 if pause else len(body) or 1
            for start in range(0, len(body), step):
                handler.wfile.write(body[start : start + step])
                handler.wfile.flush()
                if pause and self.closing.wait(pause):
                    return

        self.pages[path] = page

    def redirect(self, path: str, target: str) -> None:
        def page(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", target)
            handler.end_headers()

        self.pages[path] = page

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DEEPREC_CACHE", str(folder))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return folder


def hub(repository: str = "good/model", digest: str = DIGEST, size: int = len(BODY)) -> Hub:
    return Hub(repository, "r1", size, (File("weights.bin", digest, "weights.bin"),))


def page_of(repository: str) -> str:
    return f"/{repository}/resolve/r1/weights.bin"


def define(monkeypatch: pytest.MonkeyPatch, *sources: Source, **more: Any) -> None:
    asset = Asset("toy", "data set", "CC0-1.0", "tests", sources, **({"disk_space": 1} | more))
    monkeypatch.setattr(asset_cache, "ASSETS", {"toy": asset})


def litter(cache: Path) -> list[str]:
    """What lies in the cache beside the lock file."""
    return sorted(path.name for path in cache.glob("*") if path.name != ".toy.lock") if cache.exists() else []


def zipped(path: Path, **members: bytes) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(f"inner/{name}.bin", body)
    return path.read_bytes()


def child(server: Server, cache: Path, script: str, **environment: str) -> subprocess.Popen[str]:
    """A process of its own with the asset `toy` from the hub page good/model, running `script`."""
    prelude = f"""
        import os, sys
        from deeprec import assets
        from deeprec.assets import Asset, cache
        from deeprec.errors import DeepRecError
        from deeprec.assets.downloads import File, Hub, Wheel
        source = Hub("good/model", "r1", {len(BODY)}, (File("weights.bin", "{DIGEST}", "weights.bin"),))
        define = lambda source: {{"toy": Asset("toy", "data set", "CC0-1.0", "tests", (source,), 1)}}
        cache.ASSETS = define(source)
    """
    variables = {"PYTHONPATH": str(SOURCE_ROOT), "DEEPREC_CACHE": str(cache), "HF_ENDPOINT": server.url}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(script)],
        env=os.environ | variables | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def await_bytes(cache: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until a file of the pattern in the staging folder has content."""
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in cache.glob(f".toy.part-*/{pattern}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the download did not begin"
        time.sleep(0.02)


# --- good downloads -------------------------------------------------------------------------------


def test_a_download_is_kept_whole_and_asked_for_once(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve(page_of("good/model"), BODY)
    define(monkeypatch, hub())
    assert assets.locate("toy") is None
    assert assets.statuses()[0].state == "missing"
    folder = assets.fetch("toy")
    assert folder == cache / "toy" == assets.locate("toy")
    assert (folder / "weights.bin").read_bytes() == BODY
    assert assets.fetch("toy", offline=True) == folder
    assert server.requests[page_of("good/model")] == 1
    assert litter(cache) == ["toy"]
    status = assets.verify("toy")
    assert (status.state, status.size, status.source) == ("ready", len(BODY), "model hub (good/model)")


def test_a_download_is_told_in_one_line_and_drawn_by_the_hook(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[int] = []

    @contextlib.contextmanager
    def draw(size: int) -> Iterator[downloads.Report]:
        drawn.append(size)
        yield drawn.append

    server.serve(page_of("good/model"), BODY)
    define(monkeypatch, hub())
    monkeypatch.setattr(downloads, "progress", draw)
    assets.fetch("toy")
    assert capsys.readouterr() == ("", "toy from model hub (good/model), 1 MB\n")
    size, *done = drawn
    assert done == sorted(done)
    assert size == done[-1] == len(BODY)


@pytest.mark.parametrize("terminal", [True, False])
def test_commands_draw_downloads_on_terminals(
    terminal: bool, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(downloads, "progress", None)  # put back after the test
    assert CliRunner().invoke(cli.app, ["assets", "list"]).exit_code == 0
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with downloads.progress(2_000_000) as report:
        report(2_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("2.0/2.0 MB" in err) == terminal
    assert bool(err) == terminal


def test_a_redirect_is_followed(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.redirect(page_of("good/model"), "/elsewhere")
    server.serve("/elsewhere", BODY)
    define(monkeypatch, hub())
    assert (assets.fetch("toy") / "weights.bin").read_bytes() == BODY


def test_a_web_archive_gives_its_members(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = zipped(tmp_path / "a.zip", weights=BODY, other=b"not wanted")
    server.serve("/a.zip", body)
    file = File("weights.bin", DIGEST, "inner/weights.bin")
    define(monkeypatch, WebArchive(f"{server.url}/a.zip", hashlib.sha256(body).hexdigest(), len(body), (file,)))
    folder = assets.fetch("toy")
    assert sorted(path.name for path in folder.iterdir()) == ["asset.json", "weights.bin"]


def test_what_is_built_from_the_files_belongs_to_the_asset(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "built.txt").write_text("built")

    server.serve(page_of("good/model"), BODY)
    define(monkeypatch, hub(), build=build)
    built = assets.fetch("toy") / "sub" / "built.txt"
    built.write_text("other")  # as long as before: only the sha256 tells
    assert assets.locate("toy") is not None
    assert assets.verify("toy").state == "altered"
    built.unlink()
    assert assets.locate("toy") is None


def test_a_build_that_fails_leaves_nothing(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise DeepRecError("The conversion failed.")

    server.serve(page_of("good/model"), BODY)
    define(monkeypatch, hub(), build=build)
    with pytest.raises(DeepRecError, match="conversion failed"):
        assets.fetch("toy")
    assert litter(cache) == []


# --- bad sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("truncated", r"broke off after 1,000 of 1,048,576 bytes of weights\.bin"),
        ("altered", rf"sha256 expected {DIGEST[:12]}…, got [0-9a-f]{{12}}… in 1,048,576 bytes"),
        ("too short", r"sha256 expected .* in 1,000 bytes"),
        ("too long", r"sent more than the expected 1,048,576 bytes"),
        ("missing", r"answered 404 Not Found for http"),
    ],
)
@pytest.mark.parametrize("second", ["without", "with a good second source"])
def test_a_bad_source_gives_way_or_is_refused(
    fault: str, sentence: str, second: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page_of("bad/model")
    if fault == "truncated":
        server.serve(page, BODY[:1000], claimed=len(BODY))
    elif fault == "altered":
        server.serve(page, BODY[:-1] + b"x")
    elif fault == "too short":
        server.serve(page, BODY[:1000])
    elif fault == "too long":
        server.serve(page, BODY + b"x")
    server.serve(page_of("good/model"), BODY)
    if second == "without":
        define(monkeypatch, hub("bad/model"))
        with pytest.raises(DeepRecError, match=sentence) as caught:
            assets.fetch("toy")
        assert "toy could not be fetched: model hub (bad/model)" in str(caught.value)
        assert "deeprec assets get toy" in str(caught.value)
        assert litter(cache) == []
    else:
        define(monkeypatch, hub("bad/model"), hub())
        folder = assets.fetch("toy")
        assert (folder / "weights.bin").read_bytes() == BODY
        assert json.loads((folder / "asset.json").read_text())["source"] == "model hub (good/model)"
        assert litter(cache) == ["toy"]


def test_all_failures_are_told_in_one_sentence(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.serve(page_of("b/b"), b"x")
    define(monkeypatch, hub("a/a"), hub("b/b"))
    with pytest.raises(DeepRecError, match=r"a/a\) answered 404.*; model hub \(b/b\) gave a weights\.bin that"):
        assets.fetch("toy")


@pytest.mark.parametrize("content", ["no such member", "altered member", "no zip"])
def test_a_bad_archive_is_refused(
    content: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    member = BODY if content == "no such member" else BODY[1:]
    body = b"no zip" * 100 if content == "no zip" else zipped(tmp_path / "a.zip", weights=member)
    server.serve("/a.zip", body)
    path = "inner/absent.bin" if content == "no such member" else "inner/weights.bin"
    source = WebArchive(
        f"{server.url}/a.zip",
        hashlib.sha256(body).hexdigest(),
        len(body),
        (File("weights.bin", DIGEST, path),),
    )
    define(monkeypatch, source)
    sentence = {
        "no such member": r"has no member inner/absent\.bin",
        "altered member": "sha256 expected",
        "no zip": "is not a whole zip archive",
    }[content]
    with pytest.raises(DeepRecError, match=sentence):
        assets.fetch("toy")
    assert litter(cache) == []


# --- sources that cannot be reached ---------------------------------------------------------------


def test_a_refused_connection_gives_way_at_once(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{reserved.getsockname()[1]}/a.zip"
        server.serve(page_of("good/model"), BODY)
        define(monkeypatch, WebArchive(closed, DIGEST, 1, ()), hub())
        start = time.monotonic()
        assets.fetch("toy")
        assert time.monotonic() - start < 2


@pytest.mark.skipif(sys.platform != "linux", reason="fills a backlog the way Linux counts it")
def test_a_silent_host_gives_way_within_seconds(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:  # the backlog is full now: the next SYN gets no answer
            client.setblocking(False)
            client.connect_ex(address)
        server.serve(page_of("good/model"), BODY)
        define(monkeypatch, WebArchive(f"http://127.0.0.1:{address[1]}/a.zip", DIGEST, 1, ()), hub())
        start = time.monotonic()
        assets.fetch("toy")
        assert downloads.CONNECT_TIMEOUT * 0.9 < time.monotonic() - start < downloads.CONNECT_TIMEOUT + 3
        for client in waiting:
            client.close()


def test_a_dead_name_server_gives_way_within_seconds(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def dead_for_others(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "hub.invalid":
            server.closing.wait(60)
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", dead_for_others)
    monkeypatch.setattr(downloads, "CONNECT_TIMEOUT", 0.5)
    define(monkeypatch, WebArchive("http://hub.invalid/a.zip", DIGEST, 1, ()))
    start = time.monotonic()
    with pytest.raises(DeepRecError, match=r"no answer from the name server for hub\.invalid"):
        assets.fetch("toy")
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("manner", ["silent before the answer", "silent in the middle", "a trickle"])
def test_a_source_that_stalls_gives_way(
    manner: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "READ_TIMEOUT", 1.0)
    if manner == "silent before the answer":
        server.pages[page_of("slow/model")] = lambda handler: (server.closing.wait(60), None)[1]
        sentence = "cannot be reached .*silent for 1 s"
    elif manner == "silent in the middle":

        def page(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(BODY)))
            handler.end_headers()
            handler.wfile.write(BODY[:5000])
            handler.wfile.flush()
            server.closing.wait(60)

        server.pages[page_of("slow/model")] = page
        sentence = "broke off after 5,000 of 1,048,576 bytes"
    else:
        monkeypatch.setattr(downloads, "SLOWEST", 50_000)
        server.serve(page_of("slow/model"), BODY, pause=0.3)
        sentence = "sends too slowly"
    server.serve(page_of("good/model"), BODY)
    define(monkeypatch, hub("slow/model"))
    start = time.monotonic()
    with pytest.raises(DeepRecError, match=sentence):
        assets.fetch("toy")
    define(monkeypatch, hub("slow/model"), hub())
    assets.fetch("toy")
    assert time.monotonic() - start < 8
    assert litter(cache) == ["toy"]


# --- the cache ------------------------------------------------------------------------------------


def test_offline_without_a_copy_names_the_remedy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    define(monkeypatch, hub())
    with pytest.raises(DeepRecError, match=r"toy is not in the cache .*run `deeprec assets get toy`"):
        assets.fetch("toy", offline=True)
    assert not cache.exists()


def test_an_unknown_name_lists_the_known_ones(cache: Path) -> None:
    for call in (assets.fetch, assets.locate, assets.verify):
        with pytest.raises(DeepRecError, match=r"no asset 'nope'.*smollm2-135m-instruct, minilm-l6, ml-100k"):
            call("nope")


@pytest.mark.parametrize("damage", ["shorter", "file gone", "manifest gone", "manifest broken", "same size"])
def test_a_copy_altered_later_is_reported_and_fetched_again(
    damage: str,
    server: Server,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.serve(page_of("good/model"), BODY)
    define(monkeypatch, hub())
    folder = assets.fetch("toy")
    if damage == "shorter":
        (folder / "weights.bin").write_bytes(BODY[:10])
    elif damage == "file gone":
        (folder / "weights.bin").unlink()
    elif damage == "manifest gone":
        (folder / "asset.json").unlink()
    elif damage == "manifest broken":
        (folder / "asset.json").write_text("[1")
    else:
        (folder / "weights.bin").write_bytes(BODY[::-1])
    thorough = damage == "same size"
    assert assets.verify("toy").state == "altered"
    if not thorough:
        assert assets.locate("toy") is None
    with pytest.raises(DeepRecError, match=r"the cached toy .*run `deeprec assets get toy`"):
        assets.fetch("toy", offline=True, read_all=thorough)
    capsys.readouterr()
    assert (assets.fetch("toy", read_all=thorough) / "weights.bin").read_bytes() == BODY
    assert "the cached toy" in capsys.readouterr().err
    assert assets.verify("toy").state == "ready"
    assert litter(cache) == ["toy"]


def test_a_new_checksum_or_format_version_in_the_table_makes_the_copy_outdated(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve(page_of("good/model"), BODY)
    define(monkeypatch, hub())
    assets.fetch("toy")
    define(monkeypatch, hub(digest="0" * 64))
    assert "another version" in assets.statuses()[0].problem
    define(monkeypatch, hub(), format_version=2)
    assert assets.statuses()[0].state == "altered"
    define(monkeypatch, hub("renamed/model"))  # the same files from elsewhere
    assert assets.statuses()[0].state == "ready"


def test_a_copy_of_an_earlier_version_without_format_version_is_ready(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve(page_of("good/model"), BODY)
    define(monkeypatch, hub())
    path = assets.fetch("toy") / "asset.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("format_version") == 1
    path.write_text(json.dumps(manifest | {"unknown": 1}))
    assert assets.verify("toy").state == "ready"
    define(monkeypatch, hub(), format_version=2)
    assert assets.verify("toy").state == "altered"


def test_a_missing_module_is_told_before_the_download(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(monkeypatch, hub(), requires=("json", "no_such_module"))
    with pytest.raises(DeepRecError, match=r"needs the modules no_such_module.*pip install --editable '\.\[local\]'"):
        assets.fetch("toy")
    assert not server.requests


def test_too_little_room_is_told_before_the_download(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(monkeypatch, hub(), disk_space=10**18)
    with pytest.raises(DeepRecError, match=r"needs 1,000,000,000,000 MB .* MB free"):
        assets.fetch("toy")
    assert not server.requests
    assert litter(cache) == []


def test_a_cache_that_is_no_folder_is_one_clear_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    define(monkeypatch, hub())
    with pytest.raises(DeepRecError, match=r"toy cannot be kept in .*DEEPREC_CACHE"):
        assets.fetch("toy")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEEPREC_CACHE", str(tmp_path))
    assert assets.cache_folder() == tmp_path
    monkeypatch.delenv("DEEPREC_CACHE")
    assert assets.cache_folder().name == "deeprec"


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_full_disk_is_one_clear_sentence_and_leaves_nothing(server: Server, cache: Path) -> None:
    server.serve(page_of("good/model"), BODY)
    script = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            assets.fetch("toy")
        except DeepRecError as error:
            print(error)
    """
    out, err = child(server, cache, script).communicate(timeout=60)
    assert "toy cannot be kept in" in out, err
    assert "make room there" in out
    assert litter(cache) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_nothing(server: Server, cache: Path) -> None:
    server.serve(page_of("good/model"), BODY, pause=0.05)
    process = child(server, cache, "assets.fetch('toy')")
    await_bytes(cache, "ready-*/weights.bin", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in err
    assert process.returncode
    assert litter(cache) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_what_a_killed_process_left_is_removed_by_the_next(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve(page_of("good/model"), BODY, pause=0.05)
    process = child(server, cache, "assets.fetch('toy')")
    await_bytes(cache, "ready-*/weights.bin", process)
    process.kill()
    process.communicate(timeout=30)
    assert len(litter(cache)) == 1  # or the test proves nothing
    define(monkeypatch, hub())
    assert assets.locate("toy") is None
    server.serve(page_of("good/model"), BODY)
    assets.fetch("toy")
    assert litter(cache) == ["toy"]


@pytest.mark.skipif(sys.platform == "win32", reason="files cannot be locked so there")
def test_processes_at_once_fetch_once(server: Server, cache: Path) -> None:
    server.serve(page_of("good/model"), BODY, pause=0.005)
    processes = [child(server, cache, "print(assets.fetch('toy'))") for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert out.strip() == str(cache / "toy"), err
    assert (cache / "toy" / "weights.bin").read_bytes() == BODY
    assert server.requests[page_of("good/model")] == 1
    assert litter(cache) == ["toy"]


def test_the_import_is_light() -> None:
    script = "import sys, deeprec.assets; print(*{'torch', 'transformers', 'requests', 'rich'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(SOURCE_ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# --- wheels ---------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a real wheel, the only place where pip may look."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_weights-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("toy_weights/weights.bin", BODY)
        info = "toy_weights-1.0.dist-info"
        # It asks for another Python and for a dependency that does not exist: as an archive it needs neither.
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\nRequires-Python: <3\n"
            "Requires-Dist: no-such-project-anywhere\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(requirement: str = "toy-weights==1.0", path: str = "toy_weights/weights.bin") -> Wheel:
    return Wheel(requirement, 10_000, (File("weights.bin", DIGEST, path),))


def test_a_wheel_is_taken_as_an_archive(cache: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    define(monkeypatch, hub(), wheel())  # the hub answers 404
    folder = assets.fetch("toy")
    assert (folder / "weights.bin").read_bytes() == BODY
    assert json.loads((folder / "asset.json").read_text())["source"] == "wheel toy-weights==1.0"
    assert litter(cache) == ["toy"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            wheel("toy-weights==2.0"),
            r"cannot be had \(pip: No matching distribution found for toy-weights==2\.0\)",
        ),
        (wheel(path="toy_weights/absent.bin"), r"has no member toy_weights/absent\.bin"),
    ],
)
def test_a_wheel_that_does_not_serve_is_refused(
    source: Wheel, sentence: str, cache: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(monkeypatch, source)
    with pytest.raises(DeepRecError, match=sentence):
        assets.fetch("toy")
    assert litter(cache) == []


def test_an_environment_without_pip_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    define(monkeypatch, wheel())
    with pytest.raises(DeepRecError, match=r"needs pip, which is not installed .*uv pip install pip"):
        assets.fetch("toy")


def test_pip_that_takes_for_ever_is_ended(
    server: Server, cache: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "PIP_TIMEOUT", 0.2)
    define(monkeypatch, wheel())
    with pytest.raises(DeepRecError, match="did not come within"):
        assets.fetch("toy")
    assert litter(cache) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits and signals")
@pytest.mark.parametrize("event", ["full disk", "Ctrl-C"])
def test_pip_interrupted_leaves_nothing(event: str, server: Server, cache: Path, shelf: Path) -> None:
    name = "toy_weights-1.0-py3-none-any.whl"
    body = (shelf / name).read_bytes() + BODY  # longer than the limit below
    server.serve("/", f'<a href="/{name}">{name}</a>'.encode())
    server.serve(f"/{name}", body, pause=0.0 if event == "full disk" else 0.05)
    script = """
        if os.environ["EVENT"] == "full disk":
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        files = (File("weights.bin", "0", "toy_weights/weights.bin"),)
        cache.ASSETS = define(Wheel("toy-weights==1.0", 10_000, files))
        try:
            assets.fetch("toy")
        except DeepRecError as error:
            print(error)
    """
    process = child(server, cache, script, EVENT=event, PIP_FIND_LINKS=f"{server.url}/")
    if event == "Ctrl-C":
        await_bytes(cache, f"work-*/tmp/**/{name}", process)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    else:
        out, err = process.communicate(timeout=60)
        assert "toy cannot be kept in" in out, err
    assert litter(cache) == []


# --- the real ones --------------------------------------------------------------------------------


def test_the_table_is_complete() -> None:
    for asset in assets.ASSETS.values():
        assert asset.licence
        assert asset.purpose
        assert any(isinstance(source, Wheel) for source in asset.sources)
        for source in asset.sources:
            assert source.size > 0
            assert all(len(file.sha256) == 64 for file in source.files)
        assert asset.disk_space > max(source.size for source in asset.sources)


@pytest.mark.parametrize("name", ["minilm-l6", "ml-100k"])
def test_a_real_asset_in_the_cache_is_the_published_one(name: str) -> None:
    if assets.locate(name) is None:
        pytest.skip(f"{name} is not in the cache")
    assert assets.verify(name).state == "ready"


@pytest.mark.llm
def test_the_converted_smollm2_is_the_published_model(tmp_path: Path) -> None:
    folder = assets.locate("smollm2-135m-instruct")
    if folder is None:
        pytest.skip("smollm2-135m-instruct is not in the cache")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    gguf = tmp_path / assets.SMOLLM2_GGUF
    gguf.symlink_to(folder / assets.SMOLLM2_GGUF)

    start = time.monotonic()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert time.monotonic() - start < 15  # about a second; generous for a busy machine
    published = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=gguf.name, dtype=torch.float32
    ).eval()

    assert model.dtype == torch.float32
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert model.generation_config.eos_token_id == 2
    for text in (
        "  lead , and trail ",
        "<|im_start|>user\nToy Story (1995) <item> é 日本 😀\n\n1. x<|im_end|>\n",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # Figures stand alone, so the blank line before one is the single token the model was trained with.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12")["input_ids"]) == ["a", "ĊĊ", "1", "2"]
    tokens_BT = torch.tensor([tokenizer("<|im_start|>user\nName a film of 1995.<|im_end|>\n")["input_ids"]])
    with torch.inference_mode():
        logits_BTV = model(tokens_BT).logits
        assert torch.isfinite(logits_BTV).all()
        assert torch.equal(logits_BTV, published(tokens_BT).logits)
