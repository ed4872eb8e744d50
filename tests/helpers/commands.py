"""The command line as a process: how it is started, and what it needs around it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COMMAND = [sys.executable, "-W", "error", "-m", "offgrid_llama.cli"]
MAIN = "import sys; from offgrid_llama.cli import main; sys.exit(main())"
# Two OpenMP processes that spin on the same cores are slower than one by far.
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive", "COLUMNS": "100", "PYTHONUNBUFFERED": ""}
COUNTING = ["--raw", "-t", "0", "-n", "2000", "1 2 3 4 5 6 7 8 9 10 11 12"]  # goes on and on
SPEED = r"\d+ prompt tokens in [\d.]+ s \([\d.]+ tokens/s\), \d+ tokens in [\d.]+ s \([\d.]+ tokens/s\)"

posix = pytest.mark.skipif(os.name != "posix", reason="signals, terminals and /dev are those of POSIX")


class Cli(Protocol):
    """Type of the ``cli`` fixture."""

    def __call__(
        self, *args: str | Path, code: int = 0, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        """Run a command, see to its exit code, and return what it wrote to stdout and stderr."""


def gguf(path: Path, **values: str) -> Path:
    """Write a GGUF file without tensors, with these strings as its metadata."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    pairs = b"".join(
        string(key.replace("__", ".")) + struct.pack("<I", 8) + string(value) for key, value in values.items()
    )
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + pairs)
    return path


# the terminal


def in_terminal(code: str, *args: str | Path, ctrl_c_after: bytes = b"") -> tuple[int, str]:
    """Run Python source with a terminal as stdin, stdout and stderr; return its exit code and all that it wrote.

    Ctrl-C is typed once ``ctrl_c_after`` has been written.
    """
    import pty

    master, slave = pty.openpty()
    env = {**ENVIRONMENT, "TERM": "xterm-256color"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *args]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
    os.close(slave)
    written = b""
    try:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not data:
                break
            written += data
            if ctrl_c_after and ctrl_c_after in written:
                os.write(master, b"\x03")
                ctrl_c_after = b""
        return process.wait(60), written.decode()
    finally:
        process.kill()
        process.wait()
        os.close(master)
