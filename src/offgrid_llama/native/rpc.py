"""Devices of other machines (ggml-rpc.h): one model over several machines, each with an ``offgrid-llama rpc-server``.

>>> import offgrid_llama as og
>>> og.Model("large.gguf", devices=["10.0.0.2:50052", "10.0.0.3:50052"])  # doctest: +SKIP

The protocol has no encryption and no keys: use it only in a network in which every machine is trusted.

llama.cpp aborts the process if a server does not answer, is no RPC server, or goes away. The first two are found out here
before llama.cpp connects. The third cannot be: **a remote that dies ends the processes that compute on it**, at their next
call. A program that has to survive this keeps the model in a process of its own.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import weakref
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import BackendError

from . import backend
from .backend import Device, default_threads, describe, pointer, start
from .check import not_null, number, real
from .handle import Handle

__all__ = ["connect", "hold", "serve"]

BACKEND = "RPC"
_HELLO = 14  # RPC_CMD_HELLO, which never changes, as ggml-rpc.cpp says
_CAPS_BYTES = 24  # the transports that one side knows
_REPLY = struct.Struct(f"<Q3Bx{_CAPS_BYTES}x")  # length, version

_once = threading.Lock()
_holders: dict[str, weakref.WeakSet[Handle]] = {}


def connect(address: str, *, timeout: float = 5.0) -> tuple[Device, ...]:
    """Return the devices of the server at ``address`` (``ggml_backend_rpc_add_server``), with their free memory.

    Args:
        address: "host:port"; the host is a name or an IPv4 address.
        timeout: seconds to wait for the server. It serves one client at a time; other clients wait.

    Raises BackendError if no RPC server answers there, or it is busy, or speaks another version of the protocol.
    """
    host, port = _parse(address)
    timeout = real("timeout", timeout, 0.001)
    add_server = _function("ggml_backend_rpc_add_server")
    with _once:
        # While a model of this process is there, the server lets another connection wait.
        if not any(not handle.closed for handle in _holders.get(address, ())):
            _greet(host, port, timeout)
        reg = not_null(
            add_server(address.encode("ascii")),
            lambda log: BackendError(f"the RPC server {address} has no devices", log=log),
        )
        return tuple(
            describe(lib.ggml_backend_reg_dev_get(reg, index)) for index in range(lib.ggml_backend_reg_dev_count(reg))
        )


def hold(handle: Handle, devices: Iterable[Device]) -> None:
    """Note that connections to the servers of these devices stay open until ``handle`` is closed."""
    for used in devices:
        if used.backend == BACKEND:
            _holders.setdefault(used.description, weakref.WeakSet()).add(handle)


def serve(
    address: str = "127.0.0.1:50052",
    *,
    devices: Sequence[Device | str] | None = None,
    n_threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Let other machines compute on the devices of this one; never return (``ggml_backend_rpc_start_server``).

    It serves one client at a time, and prints each connection to stdout. Never listen where strangers can connect: the
    protocol trusts all that it receives.

    Args:
        address: "host:port" to listen on.
        devices: Devices, or their names; None is every GPU, or the CPU if there is no GPU.
        n_threads: threads of the CPU; None is the number of physical cores.
        cache_dir: a folder for large tensors, so that the next load does not send them again.

    Raises BackendError if it cannot listen there.
    """
    host, port = _parse(address)
    threads = default_threads() if n_threads is None else n_threads
    threads = min(number("n_threads", threads, 1), os.cpu_count() or 1)
    chosen = _served_devices(devices)
    function = _function("ggml_backend_rpc_start_server")
    if cache_dir is not None:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
    endpoint = f"{_bind(host, port)}:{port}"
    function(
        endpoint.encode("ascii"),
        ffi.NULL if cache_dir is None else os.fsencode(cache_dir),
        threads,
        len(chosen),
        ffi.new("ggml_backend_dev_t[]", [pointer(device) for device in chosen]),
    )
    raise BackendError(f"the RPC server on {address} ended")


def _served_devices(devices: Sequence[Device | str] | None) -> list[Device]:
    if devices is None:
        found = backend.devices()
        return [gpu for gpu in found if gpu.type in ("GPU", "IGPU")] or [cpu for cpu in found if cpu.type == "CPU"]
    chosen = [backend.device(name) if isinstance(name, str) else name for name in devices]
    if not chosen:
        raise ValueError("devices is empty")
    return chosen


def _function(name: str) -> Any:
    start()
    reg = lib.ggml_backend_reg_by_name(BACKEND.encode("ascii"))
    if not reg:
        raise BackendError(
            "this build has no RPC backend. Build it in with pip install . --config-settings=cmake.define.GGML_RPC=ON"
        )
    return ffi.cast(f"{name}_t", lib.ggml_backend_reg_get_proc_address(reg, name.encode("ascii")))


def _parse(address: str) -> tuple[str, int]:
    if not isinstance(address, str):
        raise TypeError(f"address must be str, not {type(address).__name__}")
    host, colon, port = address.partition(":")
    if not (host and colon and address.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"address must be host:port, such as 10.0.0.2:50052, not {address!r}")
    return host, int(port)


def _greet(host: str, port: int, timeout: float) -> None:
    """Shake hands as llama.cpp does, and raise BackendError where it aborts."""
    address = f"{host}:{port}"
    try:
        with closing(socket.create_connection((host, port), timeout)) as connection:
            connection.sendall(struct.pack("<BQ", _HELLO, _CAPS_BYTES) + bytes(_CAPS_BYTES))
            reply = _read(connection, _REPLY.size)
    except TimeoutError:
        raise BackendError(
            f"the RPC server {address} gave no answer within {timeout:g} s: it is busy with another client, or is none"
        ) from None
    except OSError as error:
        raise BackendError(f"there is no RPC server at {address}: {error.strerror or error}") from None
    length, *version = _REPLY.unpack(reply) if len(reply) == _REPLY.size else (0, 0, 0, 0)
    if length != _REPLY.size - 8:
        raise BackendError(f"what listens at {address} is no RPC server")
    if version[0] != lib.RPC_PROTO_MAJOR_VERSION or version[1] > lib.RPC_PROTO_MINOR_VERSION:
        ours = f"{lib.RPC_PROTO_MAJOR_VERSION}.{lib.RPC_PROTO_MINOR_VERSION}"
        theirs = ".".join(map(str, version))
        raise BackendError(f"the RPC server {address} speaks version {theirs}, and this is version {ours}")


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def _bind(host: str, port: int) -> str:
    """Return the host's IPv4 address. Raises BackendError if nothing can listen there; llama.cpp prints that and returns."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise BackendError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        return str(listener.getsockname()[0])
