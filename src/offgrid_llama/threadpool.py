"""ThreadPool: threads of the CPU that several contexts share (``ggml_threadpool``)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ._capi import ffi, lib
from ._check import not_null, number
from ._handle import Handle, Owner
from .backend import default_threads, start
from .errors import BackendError

__all__ = ["ThreadPool"]


class ThreadPool(Owner):
    """Threads to compute with, for ``Context(threadpool=...)``; without one each context has its own.

    One of its contexts computes at a time and the others wait, so that no more threads than processors are at work. A
    context is the pool's child as well as its model's: closing the pool closes it first.

    With OpenMP, the usual build on Linux, OpenMP's own threads do the work and the pool only tells them where.

    Args:
        n_threads: how many, the one that calls decode among them; None is the number of physical cores.
        cpus: the processors that they may run on, from 0; None is all. The thread that calls decode is bound to them as
            well, and stays so.
        strict_cpu: bind each thread to one of ``cpus``, in order.
        poll: 0 to 100, how long a thread looks for work before it sleeps; not for OpenMP.

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
        there = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        wanted = default_threads() if n_threads is None else n_threads
        self.n_threads = number("n_threads", wanted, 1, min(os.cpu_count() or 1, lib.GGML_MAX_N_THREADS))
        if not isinstance(strict_cpu, bool):
            raise TypeError(f"strict_cpu must be True or False, not {type(strict_cpu).__name__}")
        params = ffi.new("struct ggml_threadpool_params *", lib.ggml_threadpool_params_default(self.n_threads))
        params.poll = number("poll", poll, 0, 100)
        params.strict_cpu = strict_cpu
        for i, cpu in enumerate(() if cpus is None else cpus):
            if number(f"cpus[{i}]", cpu, 0, lib.GGML_MAX_N_THREADS - 1) not in there:
                raise ValueError(
                    f"cpus[{i}] must be one of {sorted(there)}, not {cpu}: the process may run on no other"
                )
            params.cpumask[cpu] = True
        start()
        reg = lib.ggml_backend_reg_by_name(b"CPU")
        new, free = (
            ffi.cast(f"{name}_t", lib.ggml_backend_reg_get_proc_address(reg, name.encode("ascii")))
            for name in ("ggml_threadpool_new", "ggml_threadpool_free")
        )
        if not (new and free):
            raise BackendError("the CPU backend has no thread pools")
        ptr = not_null(new(params), lambda log: BackendError("the thread pool could not be made", log=log))
        self._own(Handle(f"ThreadPool of {self.n_threads}", ptr, free, exclusive=True))
