"""Launcher: starts the processes of workers. The first one can start before the server knows its model.

Most of the server's start is a worker's imports and its load. So the command line starts the first worker ahead of
everything else: the worker imports while the arguments are read, and loads its model while the server is imported.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

from offgrid_llama import start

__all__ = ["Launched", "Launcher", "launcher", "worker_environment"]

Launched: TypeAlias = "tuple[subprocess.Popen[bytes], socket.socket]"
"""A worker's process, and the server's end of the socket between them."""

PASSED_VARIABLES = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT",
    "XDG_CACHE_HOME", "OFFGRID_LLAMA_CACHE",
)  # fmt: skip
PASSED_PREFIXES = (
    "OMP_", "GOMP_", "KMP_", "GGML_", "CUDA_", "HIP_", "ROCR_", "VK_", "ASAN_", "UBSAN_", "LSAN_", "COVERAGE_",
)  # fmt: skip
"""A worker gets these variables of the environment, which it needs to compute. So it gets no secrets."""
APART: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
"""Ctrl-C on the server's terminal is for the server alone. A session would do, but Linux may share out the cores by
sessions: then two workers leave the server's own session no time for half a second."""


class Launcher:
    """Starts workers, and keeps those that were started ahead of time until they are asked for."""

    def __init__(self) -> None:
        self._prepared: list[Launched] = []
        self._loading: list[tuple[dict[str, Any], Launched]] = []

    def prepare(self) -> Launched:
        """Start a process for the next launch. It waits for its model, and ends when its socket closes."""
        self._prepared.append(_start())
        return self._prepared[-1]

    def launch_ahead(self, spec: Mapping[str, Any]) -> None:
        """Let a worker load its model for the next ``launch`` with the same arguments. Raises OSError."""
        self._loading.append((dict(spec), self.launch(spec)))

    def launch(self, spec: Mapping[str, Any]) -> Launched:
        """Return a worker that loads a model, with the arguments of its Service. Raises OSError."""
        from offgrid_llama.worker.channel import packed
        from offgrid_llama.worker.frames import LoadModel

        for i, (known, launched) in enumerate(self._loading):
            if known == spec:
                del self._loading[i]
                return launched
        process, ours = self._prepared.pop() if self._prepared else _start()
        try:
            ours.sendall(packed([LoadModel(dict(spec))]))
        except OSError:
            ours.close()
            process.kill()
            process.wait()
            raise
        return process, ours


launcher = Launcher()
"""The launcher of this process."""


def _start() -> Launched:
    ours, theirs = socket.socketpair()
    try:
        process = subprocess.Popen(
            start.command("offgrid_llama.worker", str(theirs.fileno())), env=worker_environment(),
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=True,
            **APART,
        )  # fmt: skip
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def worker_environment() -> dict[str, str]:
    """Return the environment of a worker's process."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_VARIABLES or name.startswith(PASSED_PREFIXES)
    }
    return {**passed, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": os.pathsep.join(start.search_path())}
