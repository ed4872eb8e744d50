"""Pictures that requests name by URLs: fetched from allowed hosts only, within bounds."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from helpers.media_files import png
from offgrid_llama.server import picture_urls
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.picture_urls import MAX_PICTURES, with_pictures
from offgrid_llama.worker.generation import Conversation

FILE = base64.b64decode(png(" dog"))


class Site(BaseHTTPRequestHandler):
    """A web site with a picture, redirects, an error, a file without end, and one that never comes."""

    asked: ClassVar[list[str]] = []
    over: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind = self.path.strip("/").partition("?")[0]
        if kind.startswith("to"):
            self.send_response(302)
            places = {"to-picture": "/dog.png", "to-itself": "/to-itself", "to-other": "http://127.0.0.2:1/dog.png"}
            self.send_header("Location", places.get(kind, "file:///etc/passwd"))
            self.end_headers()
        elif kind == "dog.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(FILE)
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            while not self.over.is_set():
                self.wfile.write(bytes(2**16))
        elif kind == "slow":
            self.over.wait(60)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server that tells nothing of clients that leave."""

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """The address of that site."""
    server = Server(("127.0.0.1", 0), Site)
    Site.asked, Site.over = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    Site.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(url: str, *hosts: str, n: int = 1) -> list[Any]:
    """Return the content of a message with a picture of this URL, ``n`` times."""
    parts = [{"type": "image_url", "image_url": {"url": url if n == 1 else f"{url}?{i}"}} for i in range(n)]
    content = [{"type": "text", "text": "Look."}, *parts, {"type": "image_url", "image_url": "data:,x"}]
    what = asyncio.run(with_pictures(Conversation(messages=[{"role": "user", "content": content}]), hosts))
    assert isinstance(what, Conversation)
    made: list[Any] = what.messages[0]["content"]
    assert made[0] == content[0]
    assert made[-1] == content[-1]
    return made[1:-1]


@pytest.mark.parametrize("path", ["dog.png", "to-picture", "dog.png?size=large"])
def test_a_picture_comes(site: str, path: str) -> None:
    """The file is there in place of the URL; a redirect on the same host is followed, and a URL is asked for once."""
    assert fetched(f"http://{site}/{path}", site) == [{"type": "image", "image": FILE}]
    assert len(Site.asked) == 1 + (path == "to-picture")
    for entry in ("*.0.0.1", "example.org"):
        with pytest.raises(ApiError, match="not fetched here"):
            fetched(f"http://{site}/{path}", f"{entry}:{site.partition(':')[2]}")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("none.png", "status 404"), ("to-itself", "more than 3 times"), ("to-other", "not fetched here"),
        ("to-file", "no http URL"), ("endless", "more than 8,388,608 bytes"), ("slow", "time"),
    ],
)  # fmt: skip
def test_what_does_not_come(site: str, path: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error of the request that names the URL."""
    monkeypatch.setattr(picture_urls, "SECONDS", 1.0 if path == "slow" else 20.0)
    with pytest.raises(ApiError, match=why) as refused:
        fetched(f"http://{site}/{path}", site)
    assert (refused.value.status, refused.value.param) == (400, "messages")
    assert path[:4] in str(refused.value) or path.startswith("to")


def test_another_host(site: str) -> None:
    """A redirect to another host is not followed, even if that is allowed, too."""
    with pytest.raises(ApiError, match="another host"):
        fetched(f"http://{site}/to-other", site, "127.0.0.2:1")


def test_private_addresses(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to this machine, or to its network, is not asked; nothing connects there."""
    port = site.partition(":")[2]
    for address in ("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fd00::1", "0.0.0.0"):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port)))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
        with pytest.raises(ApiError, match="private address"):
            fetched(f"http://pictures.example.org:{port}/dog.png", f"*.example.org:{port}")
    assert Site.asked == []


@pytest.mark.parametrize(
    "url", ["http://user:secret@{}/dog.png", "http://{}x/dog.png", "http:///dog.png", "https://[/a"]
)
def test_no_urls(site: str, url: str) -> None:
    """What is no URL, or has a name and password, is refused."""
    with pytest.raises(ApiError):
        fetched(url.format(site), site)
    assert Site.asked == []


def test_without_hosts(site: str) -> None:
    """By default nothing is fetched, and the error says what to do."""
    with pytest.raises(ApiError, match="send the file as a data: URL"):
        fetched(f"http://{site}/dog.png")
    assert Site.asked == []


def test_many(site: str) -> None:
    """A request may name some pictures, and no more."""
    assert len(fetched(f"http://{site}/dog.png", site, n=MAX_PICTURES)) == MAX_PICTURES
    with pytest.raises(ApiError, match=f"more than {MAX_PICTURES}"):
        fetched(f"http://{site}/dog.png", site, n=MAX_PICTURES + 1)
