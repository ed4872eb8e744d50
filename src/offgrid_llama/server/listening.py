"""Listening sockets, and how many connections the open files of this process allow."""

from __future__ import annotations

import resource
import socket
from contextlib import suppress

__all__ = ["RESERVED_FILES", "connection_limit", "listening_sockets"]

RESERVED_FILES = 128
"""Open files that are not connections: sockets to workers, models that are looked at, logs."""


def listening_sockets(hosts: str, port: int) -> list[socket.socket]:
    """Return a bound socket for each address of some hosts, which have commas between them.

    Port 0 is any free one, the same for all addresses. Raises OSError that names the address.
    """
    bound: list[socket.socket] = []
    for host in hosts.split(","):
        bound += _sockets_of(host.strip(), port)
        port = bound[-1].getsockname()[1]
    return bound


def _sockets_of(host: str, port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            sock.setblocking(False)
            port = sock.getsockname()[1]
    except OSError as error:
        for sock in bound:
            sock.close()
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot listen on {host}, port {port}: {reason[:1].lower()}{reason[1:]}") from error
    return bound


def connection_limit(wanted: int) -> int:
    """Return how many connections may be open at a time: as many as wanted, or as the limit of open files leaves room for.

    The limit of open files is raised as far as it must and may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    return max(1, soft // 2, soft - RESERVED_FILES)
