"""Sockets to listen on, and the number of connections."""

from __future__ import annotations

import gc
import socket
from typing import Any

import httpx
import pytest

from helpers.apps import answer, listening
from helpers.serving import wait_until
from offgrid_llama.server.listening import RESERVED_FILES, listening_sockets


def test_an_address_in_use() -> None:
    """A second server on an address raises OSError that names it; port 0 is one free port for all addresses of a host."""
    first = listening_sockets("localhost", 0)
    ports = {sock.getsockname()[1] for sock in first}
    assert len(ports) == 1
    for sock in first:
        sock.listen()
    with pytest.raises(OSError, match=rf"localhost, port {min(ports)}: address already in use"):
        listening_sockets("localhost", min(ports))
    for sock in first:
        sock.close()


def test_a_second_server(run_child: Any) -> None:
    """It exits with 1, and its last line says which address is in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        source = f"""
            import sys
            from offgrid_llama.server import Settings, run
            from offgrid_llama.cli.exits import explain
            try:
                run(Settings.load(None, {{}}, port={port}))
            except OSError as error:
                code, message = explain(error)
                sys.exit(f"{{code}} {{message}}")
        """
        done = run_child(source)
    assert done.stderr.strip().splitlines()[-1] == f"1 cannot listen on 127.0.0.1, port {port}: address already in use"


def test_the_limit_of_open_files(run_child: Any) -> None:
    """The limit is raised where it may be; otherwise some files are left for what is no connection."""
    source = """
        import resource
        from offgrid_llama.server.listening import connection_limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))
        print(connection_limit(500), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        print(connection_limit(500), connection_limit(100))
    """
    done = run_child(source)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["500", str(500 + RESERVED_FILES), str(256 - RESERVED_FILES), "100"]


def test_more_connections_than_there_is_room_for() -> None:
    """A connection too many is answered with 503 and closed; when another one ends, there is room again."""
    with listening(max_connections=3) as served:
        held = [served.connect() for _ in range(3)]
        assert [httpx.get(f"{served.url}/health", timeout=10).status_code for _ in range(3)] == [503] * 3
        with served.connect() as refused:
            head, _, body = answer(refused).partition(b"\r\n\r\n")
        assert b"Retry-After: 5" in head
        assert b"too_many_connections" in body
        for client in held:
            client.close()
        wait_until(lambda: httpx.get(f"{served.url}/health", timeout=10).status_code == 200)


def test_collections_leave_out_what_stays(run_child: Any) -> None:
    """While run() serves, the garbage collector leaves out what was there before, and rests; afterwards it does neither."""
    source = """
        import gc, os, signal
        from offgrid_llama.server import Settings, run
        def told(url):
            print(gc.get_freeze_count() > 50_000, len(gc.get_objects()) < 50_000, gc.get_threshold()[0] > 10_000)
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            run(Settings.load(None, {}, port=0), on_listening=told)
        finally:
            print(gc.get_freeze_count(), len(gc.get_objects()) > 50_000, gc.get_threshold()[0])
    """
    done = run_child(source)
    assert done.stdout.split() == ["True", "True", "True", "0", "True", str(gc.get_threshold()[0])], done.stderr
