"""ThreadPool: threads of the CPU that several contexts share (``ggml_threadpool``)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import BackendError

from .backend import default_threads, start
from .check import not_null, number
from .handle import Handle, Owner

__all__ = ["ThreadPool"]


class ThreadPool(Owner):
    """Threads to compute with, for ``Context(threadpool=...)``. A context without one has its own.

    One context of a pool computes at a time and the others wait, so that no more threads than processors work. A context is
    a child of the pool as well as of its model: closing the pool closes the context first.

    With OpenMP, the usual build on Linux, OpenMP's own threads do the work, and the pool only binds them to processors.

    Args:
        n_threads: the number of threads, with the one that calls decode; None is the number of physical cores.
        cpus: the processors that they may run on, from 0; None is all. The thread that calls decode is bound to them, too,
            and stays bound.
        strict_cpu: bind each thread to one of ``cpus``, in order.
        poll: 0 to 100: how long a thread looks for work before it sleeps. OpenMP's threads ignore it.

    Raises BackendError if the CPU backend has no thread pools.
    """

    def __init__(
        self,
        n_threads: int | None = None,
        *,
        cpus: Iterable[int] | None = None,
        strict_cpu: bool = False,
        poll: int = 50,
    ) -> None:
        wanted = default_threads() if n_threads is None else n_threads
        self.n_threads = number("n_threads", wanted, 1, min(os.cpu_count() or 1, lib.GGML_MAX_N_THREADS))
        if not isinstance(strict_cpu, bool):
            raise TypeError(f"strict_cpu must be True or False, not {type(strict_cpu).__name__}")
        params = ffi.new("struct ggml_threadpool_params *", lib.ggml_threadpool_params_default(self.n_threads))
        params.poll = number("poll", poll, 0, 100)
        params.strict_cpu = strict_cpu
        for cpu in _checked_cpus(() if cpus is None else cpus):
            params.cpumask[cpu] = True
        start()
        new, free = _functions()
        ptr = not_null(new(params), lambda log: BackendError("the thread pool could not be made", log=log))
        self._own(Handle(f"ThreadPool of {self.n_threads}", ptr, free, exclusive=True))


def _checked_cpus(cpus: Iterable[int]) -> Iterator[int]:
    """Yield the processors. Raises ValueError for one that the process may not run on."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    for i, cpu in enumerate(cpus):
        if number(f"cpus[{i}]", cpu, 0, lib.GGML_MAX_N_THREADS - 1) not in allowed:
            raise ValueError(f"cpus[{i}] must be one of {sorted(allowed)}, not {cpu}: the process may run on no other")
        yield cpu


def _functions() -> tuple[Any, Any]:
    """Return the CPU backend's functions that make and free a thread pool."""
    reg = lib.ggml_backend_reg_by_name(b"CPU")
    new, free = (
        ffi.cast(f"{name}_t", lib.ggml_backend_reg_get_proc_address(reg, name.encode("ascii")))
        for name in ("ggml_threadpool_new", "ggml_threadpool_free")
    )
    if not (new and free):
        raise BackendError("the CPU backend has no thread pools")
    return new, free
