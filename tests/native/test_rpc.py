"""Devices of other machines, by way of servers on loopback: each is a process of its own with llama.cpp's engine in it."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

import offgrid_llama as og
from offgrid_llama import rpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.children import RunChild

    Server = tuple[str, subprocess.Popen[str]]

pytestmark = pytest.mark.skipif(
    "GGML_RPC=ON" not in og.build_info().flags, reason="built without GGML_RPC; there is nothing to test"
)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Run ``offgrid-llama rpc-server``; give its address and process."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "offgrid_llama.cli", "rpc-server", "--port", address.partition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            with contextlib.suppress(og.BackendError):
                rpc.connect(address, timeout=1)
                break
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        yield address, process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    """Two servers for the whole file."""
    with server() as one, server() as two:
        yield one[0], two[0]


@contextlib.contextmanager
def listener(answer: bytes) -> Iterator[str]:
    """Listen on a free port, read what comes, answer and hang up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def loop() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(64)
                        connection.sendall(answer)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_devices_of_a_server(servers: tuple[str, str]) -> None:
    """A server's devices are GPUs to llama.cpp, with the server's memory; they are not among this machine's."""
    (device,) = rpc.connect(servers[0])
    assert (device.backend, device.type, device.description) == ("RPC", "GPU", servers[0])
    assert 2**20 < device.memory_free <= device.memory_total
    (other,) = rpc.connect(servers[1])
    assert other.name != device.name
    assert rpc.connect(servers[0])[0].name == device.name
    assert device.name not in {local.name for local in og.devices()}


def test_one_model_on_two_servers(servers: tuple[str, str], smollm2_path: Path) -> None:
    """The layers are on both, and the tokens are those of the model that is here."""
    plan = og.memory_plan(smollm2_path, devices=servers, tensor_split=[1, 2], n_ctx=256)
    names = [rpc.connect(address)[0].name for address in servers]
    with og.Model(smollm2_path, devices=servers, tensor_split=[1, 2]) as model:
        assert model.params.n_gpu_layers == -1
        assert [device.name for device in model.params.devices or ()] == names
        prompt = "The three primary colours are"
        # A server repacks no weights, so the model that is here must not: kernels for repacked ones round otherwise.
        with og.Model(smollm2_path, use_extra_bufts=False) as local:
            there, here = (og.generate(at, prompt, max_tokens=24, temperature=0) for at in (model, local))
            assert there.text == here.text
        assert len(there.tokens) == 24
        assert there.tokens == here.tokens
    # 11 of 31 layers, the output being one of the other 20.
    assert 0.15 < plan.devices[names[0]] / plan.devices[names[1]] < 0.6
    assert min(plan.devices[name] for name in names) > 15 * 2**20


def test_a_busy_server(servers: tuple[str, str], tiny: og.Model, run_child: RunChild) -> None:
    """A server has one client: another process is told so; more models of the same process share its connection."""
    ask = "import sys; from offgrid_llama import rpc; rpc.connect(sys.argv[1], timeout=float(sys.argv[2]))"
    with og.Model(tiny.path, devices=servers[:1]) as model:
        done = run_child(ask, servers[0], "0.5")
        assert done.returncode == 1
        assert "it is busy with another client" in done.stderr
        with og.Model(tiny.path, devices=servers[:1]) as second:
            assert second.params.devices is not None
            assert model.params.devices is not None
            assert second.params.devices[0].name == model.params.devices[0].name
    done = run_child(ask, servers[0], "30")
    assert done.returncode == 0, done.stderr


def test_state_and_memory_of_a_remote_model(servers: tuple[str, str], tiny: og.Model) -> None:
    """A sequence is copied, saved and restored on a remote device as on this one; a context here reads its state."""
    tokens = [1, 5, 9, 12, 7]
    with og.Model(tiny.path, devices=servers[:1]) as model, og.Context(model, n_ctx=128, n_seq_max=2) as context:
        batch = og.Batch(8)
        batch.add_sequence(tokens)
        context.decode(batch)
        logits = context.logits(-1).copy()
        with og.Context(tiny, n_ctx=128, n_seq_max=2, flash_attn_type="disabled") as local:
            local.decode(batch)
            np.testing.assert_allclose(logits, local.logits(-1), atol=2e-2)
        state = context.save_state(0)
        context.memory.copy(0, 1)
        follow = og.Batch(2)
        follow.add(3, len(tokens), [0], logits=True)
        follow.add(3, len(tokens), [1], logits=True)
        context.decode(follow)
        np.testing.assert_allclose(context.logits(0).copy(), context.logits(1).copy(), atol=1e-4)
        context.load_state(state, 1)
        assert context.memory.positions(1) == range(len(tokens))


@pytest.mark.parametrize("margin", ["none", "some", "all"])
def test_auto_is_what_fits(servers: tuple[str, str], smollm2_path: Path, margin: str) -> None:
    """With "auto" a model takes all layers where there is room, none where there is none, and in between as many as fit."""
    (device,) = rpc.connect(servers[0])
    whole = og.memory_plan(smollm2_path, devices=servers[:1], n_gpu_layers=-1).devices[device.name]
    leave = {"none": 0, "some": device.memory_free - whole // 2, "all": device.memory_free}[margin]
    with og.Model(smollm2_path, devices=[device], fit_margin=leave) as model:
        layers = model.params.n_gpu_layers
    assert {"none": layers == -1, "some": 0 < layers < 30, "all": layers == 0}[margin], layers
    if margin == "some":
        room = whole // 2
        taken = [
            og.memory_plan(smollm2_path, devices=[device], n_gpu_layers=n).devices[device.name]
            for n in (layers, layers + 1)
        ]
        assert taken[0] <= room * 1.01
        assert taken[1] >= room * 0.99  # free memory moves a little from one look to the next


def test_addresses(servers: tuple[str, str], tiny: og.Model) -> None:
    """A malformed address, and devices that are no GPUs or listed twice, are refused by name."""
    for address in ("", "localhost", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", ":1", "::1:5", "h\u00e9:1"):
        with pytest.raises(ValueError, match="address must be host:port"):
            rpc.connect(address)
    with pytest.raises(TypeError, match="address must be str"):
        rpc.connect(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout"):
        rpc.connect(servers[0], timeout=-1)
    with pytest.raises(ValueError, match="CPU is no GPU"):
        og.Model(tiny.path, devices=["CPU"])
    with pytest.raises(ValueError, match="more than once"):
        og.Model(tiny.path, devices=[servers[0], servers[0]])
    with pytest.raises(og.BackendError, match="no device 'CUDA7'"):
        og.Model(tiny.path, devices=["CUDA7"])
    with pytest.raises(TypeError, match="sequence"):
        og.Model(tiny.path, devices=servers[0])
    with pytest.raises(TypeError, match=r"devices\[1\]"):
        og.Model(tiny.path, devices=[servers[0], 5])  # type: ignore[list-item]
    for split, message in (([1.0], "1 shares for 2"), ([0, 0], "above 0"), ([1, float("nan")], r"tensor_split\[1\]")):
        with pytest.raises(ValueError, match=message):
            og.Model(tiny.path, devices=servers, tensor_split=split)
    with pytest.raises(og.BackendError, match="devices is empty"):
        og.Model(tiny.path, devices=[], n_gpu_layers=1)


def test_what_is_no_server() -> None:
    """No listener, one that says nothing, one that speaks something else, one of another version: errors, no abort."""
    for address in (f"127.0.0.1:{free_port()}", "no-such-host.invalid:1"):
        with pytest.raises(og.BackendError, match=f"there is no RPC server at {re.escape(address)}"):
            rpc.connect(address)
    versions = {version: struct.pack("<Q3Bx24x", 28, *version) for version in ((6, 9, 9), (7, 1, 0))}
    answers = [
        (b"", "is no RPC server"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(50), "is no RPC server"),
        *((reply, f"speaks version {version[0]}[.]{version[1]}") for version, reply in versions.items()),
    ]
    for answer, message in answers:
        with listener(answer) as address, pytest.raises(og.BackendError, match=message):
            rpc.connect(address, timeout=5)


def test_a_server_that_went_away(tiny: og.Model) -> None:
    """A device whose server has ended is refused before llama.cpp connects to it, which would abort."""
    with server() as (address, process):
        devices = rpc.connect(address)
        og.Model(tiny.path, devices=devices).close()
        process.kill()
        process.wait()
        with pytest.raises(og.BackendError, match="there is no RPC server"):
            og.Model(tiny.path, devices=devices)


def test_a_server_that_dies_takes_its_callers_along(tiny: og.Model, run_child: RunChild) -> None:
    """When a server dies under a model, llama.cpp aborts the process, which no binding can prevent."""
    source = """
        import os, signal, sys
        import offgrid_llama as og
        address, pid, path = sys.argv[1:]
        model = og.Model(path, devices=[address])
        context = og.Context(model, n_ctx=64)
        batch = og.Batch(1)
        batch.add(1, 0, [0], logits=True)
        context.decode(batch)
        print("computed", flush=True)
        os.kill(int(pid), signal.SIGKILL)
        batch.clear()
        batch.add(2, 1, [0], logits=True)
        context.decode(batch)
        context.logits(0).copy()
        print("survived", flush=True)
    """
    with server() as (address, process):
        done = run_child(source, address, str(process.pid), tiny.path)
    assert done.stdout.split() == ["computed"]
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert "Remote RPC server crashed" in done.stderr


def test_what_a_server_refuses(run_child: RunChild) -> None:
    """A port that is taken, a device that is not there, and an address for strangers."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(og.BackendError, match="cannot listen on"):
            rpc.serve(f"127.0.0.1:{port}")
    with pytest.raises(og.BackendError, match="no device 'nothing'"):
        rpc.serve(f"127.0.0.1:{free_port()}", devices=["nothing"])
    with pytest.raises(ValueError, match="devices is empty"):
        rpc.serve(f"127.0.0.1:{free_port()}", devices=[])
    command = [sys.executable, "-m", "offgrid_llama.cli", "rpc-server", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "--insecure" in done.stderr


def test_ctrl_c_ends_a_server() -> None:
    """Ctrl-C ends a server that waits for a client."""
    with server() as (_, process):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT
