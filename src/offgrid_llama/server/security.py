"""Guard: checks every request before anything else sees it (a plain ASGI middleware).

It checks in this order: the size of the head; where the body ends, so that a proxy and this server agree about it; the Host
header, so that a foreign page whose name points to this machine gets nothing (DNS rebinding); the origin, so that a foreign
page changes nothing by a request that needs no preflight; the key, unless the path is open. A key is compared with all keys
each time, as digests and in constant time, so that timing tells nothing about keys. Each request gets an id, which its
response has in a header, and its error in its body where the API has a place for it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import ExitStack
from typing import Any, TypeAlias

import msgspec

from .api_error import ApiError
from .body_bytes import BodyBytes
from .dialects.choice import dialect_of
from .settings import Settings

__all__ = ["HELD", "REQUEST_ID", "App", "Guard", "Receive", "Scope", "Send"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

HELD = "offgrid_llama.held"
"""The key of a scope with an ExitStack of what a request holds. It is closed when the answer is sent."""
REQUEST_ID = "offgrid_llama.request_id"
"""The key of a scope with the id of its request."""

OPEN_PATHS = {"/health", "/", "/page/page.css", "/page/page.js", "/page/attachments.js", "/page/icon.svg"}
"""Paths that need no key: whether the server is up, and the page, which asks for the key."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src data:; "
    "connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SMALL_ANSWER_BYTES = 64 * 2**10
"""Answers up to this size are not counted: connections are, and their buffers take as much."""
READING_METHODS = ("GET", "HEAD")
"""Methods that change nothing. The browser keeps their answers from foreign pages (CORS)."""
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_HEADERS = (
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """Passes on requests that are allowed.

    ``scope["key"]`` is then a short digest of the client's key, or "" where there are no two keys to tell apart.
    """

    def __init__(self, app: App, settings: Settings, body_bytes: BodyBytes) -> None:
        self._app = app
        self._body_bytes = body_bytes
        self._settings = settings
        self._hosts = settings.hosts
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        scope[REQUEST_ID] = f"req_{secrets.token_hex(12)}"
        own = [*_HEADERS, (dialect_of(scope).request_id_header.encode(), scope[REQUEST_ID].encode())]

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *own]
                await send(message)
            elif len(message.get("body", b"")) > SMALL_ANSWER_BYTES:
                with self._body_bytes.sending(scope["key"], len(message["body"])):
                    await send(message)
            else:
                await send(message)

        try:
            self._check_size(scope["headers"])
            _check_framing(scope, headers)
            self._check_host(headers.get(b"host", b""))
            if scope["method"] not in READING_METHODS:
                self._check_origin(headers)
            scope["key"] = self._key(headers, _path(scope))
        except ApiError as error:
            await _respond(scope, error, send_with_headers)
            return
        with ExitStack() as scope[HELD]:
            await self._app(scope, receive, send_with_headers)

    def _check_size(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        limit = self._settings.max_header_bytes
        if sum(len(name) + len(value) + 4 for name, value in headers) > limit:
            raise ApiError(431, f"the head has more than {limit:,} bytes", code="headers_too_large")

    def _check_host(self, header: bytes) -> None:
        host = header.decode("latin-1").strip().lower()
        name, _, port = host.rpartition(":")
        if not name or not port.isdigit():
            name = host
        if name not in self._hosts and "*" not in self._hosts:
            raise ApiError(
                403, f"the host {host[:100]!r} is not allowed here; see allowed_hosts", code="host_not_allowed"
            )

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """Check that a request comes from a page of this server, from an allowed origin, or from no page at all."""
        origin = headers.get(b"origin", b"").decode("latin-1").strip()
        allowed = self._settings.cors_origins
        if origin in allowed or "*" in allowed:
            return
        site = headers.get(b"sec-fetch-site", b"none").decode("latin-1").strip().lower()
        if origin and not _is_same(origin.lower(), headers.get(b"host", b"").decode("latin-1").strip().lower()):
            told = f"pages of {origin[:100]!r}"
        elif not origin and site not in ("same-origin", "none"):
            told = "pages of other sites"
        else:
            return
        raise ApiError(403, f"{told} may not do this; see cors_origins", code="origin_not_allowed")

    def _key(self, headers: dict[bytes, bytes], path: str) -> str:
        if not self._keys:
            return ""
        for shown in _shown_keys(headers):
            digest = hashlib.sha256(shown).digest()
            found = False
            for key in self._keys:  # all of them, each time
                found |= hmac.compare_digest(digest, key)
            if found:
                return digest.hex()[:16] if len(self._keys) > 1 else ""  # with one key, all clients are the same
        if path in OPEN_PATHS:
            return ""
        raise ApiError(
            401, "a key of this server is needed: Authorization: Bearer KEY, or x-api-key: KEY", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


def _shown_keys(headers: dict[bytes, bytes]) -> Iterator[bytes]:
    """Yield the keys that a request shows. A client of Anthropic's API may show two, one of which is for another server."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        yield token.strip()
    if b"x-api-key" in headers:
        yield headers[b"x-api-key"].strip()


def _check_framing(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Check that the head says in one way only where the body ends. Others may take the rest for another request."""
    if b"transfer-encoding" not in headers:
        return
    if b"content-length" in headers:
        message = "a request may have Content-Length or Transfer-Encoding, not both"
    elif scope.get("http_version") == "1.0":
        message = "HTTP/1.0 has no Transfer-Encoding"
    else:
        return
    raise ApiError(400, message, code="invalid_framing", headers={"Connection": "close"})


def _is_same(origin: str, host: str) -> bool:
    """Return whether an origin is the server that a Host header names, by whichever scheme its clients reach it."""
    scheme, _, name = origin.partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    return default is not None and name.removesuffix(default) == host.removesuffix(default)


def _path(scope: Scope) -> str:
    """Return the path below the place where the app is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "")) or "/"


async def _respond(scope: Scope, error: ApiError, send: Send) -> None:
    error.request_id = scope[REQUEST_ID]
    body = msgspec.json.encode(dialect_of(scope).error(error))
    extra: Iterable[tuple[bytes, bytes]] = (
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in error.headers.items()
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *extra]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
