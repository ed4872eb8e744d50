"""Pictures that a request names by http URLs: fetched from hosts that the settings allow, within bounds."""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from offgrid_llama.worker.generation import Conversation, Task

from .api_error import ApiError

__all__ = ["with_pictures"]

MAX_PICTURES = 16
"""URLs of a request."""
MAX_PICTURE_BYTES = 8 * 2**20
MAX_REDIRECTS = 3
SECONDS = 20.0
"""For each picture, redirects included."""
_PIECE_BYTES = 2**16
_PORTS = {"http": 80, "https": 443}


async def with_pictures(what: Task, hosts: Sequence[str]) -> Task:
    """Return what a worker is asked for, with the files of pictures in the places of their http URLs.

    Args:
        what: is asked for; its messages are in OpenAI's shape.
        hosts: the hosts that may be asked: names, ``*.example.org`` for all below one, addresses; each with a port where it
            is not the scheme's own. A name must not lead to a private address; an address is taken as it is.

    Raises ApiError for a URL that must not be fetched, and for one that cannot be.
    """
    messages = what.messages if isinstance(what, Conversation) else ()
    urls = list(dict.fromkeys(url for message in messages for part in _parts(message) if (url := _url(part))))
    if not urls:
        return what
    if len(urls) > MAX_PICTURES:
        raise _refused(f"there are more than {MAX_PICTURES} URLs")
    found = await asyncio.gather(*(asyncio.to_thread(_fetched, url, hosts) for url in urls))
    files = dict(zip(urls, found, strict=True))
    return msgspec.structs.replace(what, messages=[_filled(message, files) for message in messages])


def _filled(message: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    parts = [{"type": "image", "image": files[url]} if (url := _url(part)) else part for part in _parts(message)]
    return {**message, "content": parts} if parts else dict(message)


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _url(part: Any) -> str:
    """Return the http URL of a part with a picture; "" for another part."""
    given = part.get("image_url") if isinstance(part, dict) else None
    url = given.get("url") if isinstance(given, dict) else given
    return url if isinstance(url, str) and url[:5].lower() in ("http:", "https") else ""


def _fetched(url: str, hosts: Sequence[str]) -> bytes:
    """Return the file of a URL, in a thread. Raises ApiError."""
    deadline = monotonic() + SECONDS
    first = place = _checked(url, hosts)
    for _ in range(MAX_REDIRECTS + 1):
        try:
            answer = _get(place, deadline)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _refused(f"{_short(url)} cannot be fetched: {error}") from error
        if isinstance(answer, bytes):
            return answer
        place = _checked(urljoin(place.geturl(), answer), hosts)
        if place.hostname != first.hostname:
            raise _refused(f"{_short(url)} leads to another host, {place.hostname}")
    raise _refused(f"{_short(url)} leads elsewhere more than {MAX_REDIRECTS} times")


def _checked(url: str, hosts: Sequence[str]) -> SplitResult:
    """Return a URL in parts. Raises ApiError for one that must not be fetched."""
    try:
        place = urlsplit(url)
        port = place.port or _PORTS[place.scheme]
    except (ValueError, KeyError):
        raise _refused(f"{_short(url)} is no http URL") from None
    if place.username is not None or not place.hostname:
        raise _refused(f"{_short(url)} is no URL that can be fetched")
    if not any(_allows(host, place.hostname, port) for host in hosts):
        raise _refused(
            f"{_short(url)}: pictures of {place.hostname} are not fetched here; send the file as a data: URL"
        )
    return place


def _allows(entry: str, host: str, port: int) -> bool:
    allowed = urlsplit(f"//{entry}")
    name, own_port = allowed.hostname or "", allowed.port
    if port != own_port if own_port else port not in _PORTS.values():
        return False
    return host.endswith(name[1:]) if name.startswith("*.") and not _is_address(host) else host == name


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _address(host: str, port: int) -> str:
    """Return the address to connect to. It is asked for once, so that no later answer can be another one."""
    if _is_address(host):
        return host
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(ipaddress.ip_address(address.partition("%")[0]).is_global for address in found):
        raise ValueError(f"{host} is a private address")
    return found[0]


def _get(place: SplitResult, deadline: float) -> bytes | str:
    """Return the file at a place, or the URL that it leads to. Raises OSError, ValueError and HTTPException."""
    host, port = str(place.hostname), place.port or _PORTS[place.scheme]
    connection = http.client.HTTPConnection(host, port)
    connection.sock = socket.create_connection((_address(host, port), port), timeout=_left(deadline))
    try:
        if place.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
        path = (place.path or "/") + (f"?{place.query}" if place.query else "")
        connection.request("GET", path, headers={"User-Agent": "offgrid-llama", "Accept": "image/*"})
        with connection.getresponse() as response:
            location = response.getheader("Location")
            if 300 <= response.status < 400 and location:
                return location
            if response.status != http.HTTPStatus.OK:
                raise ValueError(f"status {response.status}")
            return b"".join(_pieces(connection, response, deadline))
    finally:
        connection.close()


def _pieces(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline: float
) -> Iterator[bytes]:
    n_bytes = 0
    while piece := response.read(_PIECE_BYTES):
        n_bytes += len(piece)
        if n_bytes > MAX_PICTURE_BYTES:
            raise ValueError(f"it has more than {MAX_PICTURE_BYTES:,} bytes")
        left = _left(deadline)
        if connection.sock is not None:
            connection.sock.settimeout(left)
        yield piece


def _left(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError(f"it took more than {SECONDS:g} seconds")
    return left


def _short(url: str) -> str:
    return url if len(url) <= 100 else f"{url[:100]}..."


def _refused(why: str) -> ApiError:
    return ApiError(400, f"messages: {why}", code="invalid_image_url", param="messages")
