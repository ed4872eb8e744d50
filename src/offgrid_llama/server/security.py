"""Guard: what every request has to pass before anything looks at it (a plain ASGI middleware).

In this order: the Host header, so that a page of a stranger that has its name point here gets nothing (DNS rebinding); the
key, unless the path is open; the body's type and size, and how long it takes to come. All keys are compared each time, as
digests in constant time, so that how long that takes tells nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from .errors import ApiError
from .settings import Settings

__all__ = ["Guard", "Receive", "Scope", "Send", "respond"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = {"/health", "/", "/page/page.css", "/page/page.js", "/page/icon.svg"}
"""For whoever has no key: whether the server lives, and the page, which asks for one."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """Lets through what may pass, with the whole body, and ``scope["key"]``: which key was shown, as a short digest."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._hosts = settings.hosts
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            self._check_size(scope["headers"])
            self._check_host(headers.get(b"host", b""))
            scope["key"] = self._key(headers, _path(scope))
            receive = await self._with_body(scope, headers, receive)
        except ApiError as error:
            await respond(error, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check_size(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        most = self._settings.max_header_bytes
        if sum(len(name) + len(value) + 4 for name, value in headers) > most:
            raise ApiError(431, f"the head has more than {most:,} bytes", code="headers_too_large")

    def _check_host(self, header: bytes) -> None:
        host = header.decode("latin-1").strip().lower()
        name, _, port = host.rpartition(":")
        if not name or not port.isdigit():
            name = host
        if name not in self._hosts and "*" not in self._hosts:
            raise ApiError(
                403, f"the host {host[:100]!r} is not allowed here; see allowed_hosts", code="host_not_allowed"
            )

    def _key(self, headers: dict[bytes, bytes], path: str) -> str:
        if not self._keys:
            return ""
        shown = headers.get(b"authorization", b"")
        scheme, _, token = shown.partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        found = False
        for key in self._keys:  # all of them, each time
            found |= hmac.compare_digest(digest, key)
        if found and scheme.lower() == b"bearer":
            return digest.hex()[:16]
        if path in OPEN_PATHS:
            return ""
        raise ApiError(
            401, "a key of this server is needed: Authorization: Bearer KEY", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip

    async def _with_body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Return a ``receive`` that has the whole body, which was read within its time and size."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        most = self._settings.max_body_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise ApiError(413, f"the body has {int(length):,} bytes; {most:,} are allowed", code="body_too_large")
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        has_body = length != b"0" or b"transfer-encoding" in headers
        if has_body and kind != b"application/json":
            raise ApiError(415, "the Content-Type must be application/json", code="unsupported_media_type")
        try:
            body = await asyncio.wait_for(_read(receive, most), self._settings.body_seconds)
        except asyncio.TimeoutError:
            raise ApiError(
                408, f"the body did not come within {self._settings.body_seconds:g} s", code="request_timeout",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        given = False

        async def received() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return received


def _path(scope: Scope) -> str:
    """Return the path below where the app is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "")) or "/"


async def _read(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client is gone", code="client_disconnected")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > most:
            raise ApiError(
                413, f"the body has more than {most:,} bytes", code="body_too_large", headers={"Connection": "close"}
            )
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def respond(error: ApiError, send: Send) -> None:
    """Answer with an error."""
    body = error.body()
    extra: Iterable[tuple[bytes, bytes]] = (
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in error.headers.items()
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *extra]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
