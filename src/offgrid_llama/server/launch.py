"""Launch: the process of a worker. One can be started ahead of time, and be given its model ahead of its supervisor.

A worker's imports and load are most of what a start of the server takes. So the command line starts the first worker before
it is known what for: that one imports what it needs while the arguments are read, and loads while the server is imported.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["Launched", "launch", "launch_ahead", "prepare"]

Launched: TypeAlias = "tuple[subprocess.Popen[bytes], socket.socket]"

PASSED_ON = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT",
    "XDG_CACHE_HOME", "OFFGRID_LLAMA_CACHE",
)  # fmt: skip
PREFIXES = ("OMP_", "GOMP_", "KMP_", "GGML_", "CUDA_", "HIP_", "ROCR_", "VK_", "ASAN_", "UBSAN_", "LSAN_", "COVERAGE_")
"""What a worker gets of the environment: what it takes to compute, and no secrets."""

_prepared: list[Launched] = []
_ahead: list[tuple[dict[str, Any], Launched]] = []


def prepare() -> None:
    """Start a process for the next launch. It waits, and ends with this one."""
    _prepared.append(_start())


def launch_ahead(spec: Mapping[str, Any]) -> None:
    """Let a worker load its model; the next ``launch`` with the same arguments finds it at work. Raises OSError."""
    _ahead.append((dict(spec), launch(spec)))


def launch(spec: Mapping[str, Any]) -> Launched:
    """Start a worker with the arguments of its Service; return its process and our end of its socket. Raises OSError."""
    from ..worker.frames import Load, packed

    for i, (known, launched) in enumerate(_ahead):
        if known == spec:
            del _ahead[i]
            return launched
    process, ours = _prepared.pop() if _prepared else _start()
    try:
        ours.sendall(packed([Load(dict(spec))]))
    except OSError:
        ours.close()
        process.kill()
        process.wait()
        raise
    return process, ours


def _start() -> Launched:
    ours, theirs = socket.socketpair()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "offgrid_llama.worker", str(theirs.fileno())], env=_environment(),
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=True,
            start_new_session=True,
        )  # fmt: skip
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(PREFIXES)}
    return {**kept, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
