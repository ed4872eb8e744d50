"""Targets of requests: proxies send a whole URL, where other clients send a path."""

from __future__ import annotations

import re
from collections.abc import Iterable

import h11

__all__ = ["in_origin_form"]

_URL = re.compile(rb"https?://([^/?#]*)(/[^?]*)?(\?.*)?", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[^\s@:\[\]]+)(?::[0-9]{0,5})?")


def in_origin_form(request: h11.Request) -> h11.Request:
    """Return a request for a path, whichever way it names it.

    The host of a URL takes the place of the Host header, as RFC 9112 (3.2.2) demands: it is the one that is checked.

    Raises h11.RemoteProtocolError for a target that is neither a path nor the URL of a host, nor "*", nor what a proxy is
    asked to connect to.
    """
    target = request.target
    if target.startswith(b"/") or (request.method == b"OPTIONS" and target == b"*"):
        return request
    if request.method == b"CONNECT":
        raise h11.RemoteProtocolError("this server is no proxy: it connects to no other one", error_status_hint=405)
    url = _URL.fullmatch(target)
    if url is None or not _HOST.fullmatch(url[1]):
        raise h11.RemoteProtocolError("the target must be a path, or the URL of a host without user or password")
    return h11.Request(
        method=request.method, target=(url[2] or b"/") + (url[3] or b""), http_version=request.http_version,
        headers=[*_without_host(request.headers), (b"host", url[1])],
    )  # fmt: skip


def _without_host(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name != b"host"]
