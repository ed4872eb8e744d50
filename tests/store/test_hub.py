"""Models from the hub, from a real HTTP server."""

from __future__ import annotations

import errno
import re
import signal
import sys
from pathlib import Path

import pytest

from helpers.sources import (
    BYTES,
    COMMIT,
    DEADLINE,
    FILE,
    HUB_NAME,
    REPO,
    Child,
    Server,
    StopHereError,
    left,
    needs_hub,
    needs_linux,
    shelf,
    wait_for,
)
from offgrid_llama import store
from offgrid_llama.errors import ChecksumError, DownloadError

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
    with pytest.raises(ChecksumError, match="deleted"):
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
        (500, "", "could not be downloaded"),
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
    with pytest.raises(DownloadError, match="could not be downloaded"):
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
