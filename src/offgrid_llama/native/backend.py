"""Backend: the library's start, and the devices that it can compute on (ggml-backend.h)."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offgrid_llama._capi import ffi, lib, lib_dir
from offgrid_llama.errors import BackendError

from . import callbacks as _callbacks
from .check import text_of
from .handle import refuse_after_fork

__all__ = [
    "BuildInfo", "Device", "build_info", "default_threads", "describe", "device", "devices", "features", "has_gpu",
    "numa_init", "pointer", "start", "supports", "system_info",
]  # fmt: skip

_once = threading.Lock()
_started = False
_pointers: dict[str, Any] = {}  # devices by name; they live as long as the process

DeviceType = Literal["CPU", "GPU", "IGPU", "ACCEL", "META"]
_DEVICE_TYPES: dict[int, DeviceType] = {
    lib.GGML_BACKEND_DEVICE_TYPE_CPU: "CPU",
    lib.GGML_BACKEND_DEVICE_TYPE_GPU: "GPU",
    lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "IGPU",
    lib.GGML_BACKEND_DEVICE_TYPE_ACCEL: "ACCEL",
    lib.GGML_BACKEND_DEVICE_TYPE_META: "META",
}


@dataclass(frozen=True)
class Device:
    """One device of one backend. Memory is in bytes, 0 if the backend does not tell it."""

    name: str
    description: str
    type: DeviceType
    backend: str
    memory_free: int
    memory_total: int


@dataclass(frozen=True)
class BuildInfo:
    """Versions, compiler and options of the extension and the libraries beside it."""

    llama_cpp: str
    """llama.cpp's version, from ``llama_version``."""
    commit: str
    """llama.cpp's commit id; empty when it was built from an sdist."""
    compiler: str
    flags: tuple[str, ...]


def start() -> None:
    """Start llama.cpp, once for the process (``llama_backend_init``). Every function that calls the library begins with it.

    Raises ForkError in a forked child, and BackendError if no CPU backend can be loaded.
    """
    global _started  # noqa: PLW0603 - one library for the process
    refuse_after_fork()
    if _started:
        return
    with _once:
        if _started:  # another thread may have been first
            return  # type: ignore[unreachable]
        # Without this, ggml starts a debugger on the process when an assertion fails.
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        _callbacks.install()
        lib.og_catch_assertions()
        if lib.ggml_backend_reg_count() == 0:
            lib.ggml_backend_load_all_from_path(os.fsencode(lib_dir()))
        lib.llama_backend_init()
        if not lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU):
            raise BackendError(f"no CPU backend could be loaded from {lib_dir()}", log=_callbacks.recent_log())
        _started = True


def devices() -> tuple[Device, ...]:
    """Return the devices that the backends of this build found on this machine (``ggml_backend_dev_get``).

    ``rpc.connect`` returns those of other machines.
    """
    start()
    return tuple(describe(lib.ggml_backend_dev_get(index)) for index in range(lib.ggml_backend_dev_count()))


def device(name: str) -> Device:
    """Return this machine's device of that name. Raises BackendError, which lists the names, if it has none."""
    there = {device.name: device for device in devices()}
    if name not in there:
        raise BackendError(f"there is no device {name!r}; this build finds {', '.join(there)}")
    return there[name]


def describe(ptr: Any) -> Device:
    """Return the Device of a ``ggml_backend_dev_t``, with the memory that is free now."""
    free, total = ffi.new("size_t *"), ffi.new("size_t *")
    lib.ggml_backend_dev_memory(ptr, free, total)
    described = Device(
        name=text_of(lib.ggml_backend_dev_name(ptr)),
        description=text_of(lib.ggml_backend_dev_description(ptr)),
        type=_DEVICE_TYPES[lib.ggml_backend_dev_type(ptr)],
        backend=text_of(lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(ptr))),
        memory_free=free[0],
        memory_total=total[0],
    )
    _pointers[described.name] = ptr
    return described


def pointer(device: Device) -> Any:
    """Return the ``ggml_backend_dev_t`` of a Device that this process found."""
    if device.name not in _pointers:
        raise BackendError(f"the device {device.name} was found by another process: ask for the devices in this one")
    return _pointers[device.name]


def has_gpu() -> bool:
    """Whether this machine has a device that layers can be offloaded to (``ggml_backend_dev_by_type``)."""
    start()
    kinds = (lib.GGML_BACKEND_DEVICE_TYPE_GPU, lib.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return any(lib.ggml_backend_dev_by_type(kind) for kind in kinds)


def numa_init(strategy: Literal["distribute", "isolate", "numactl"]) -> None:
    """Spread the threads of the process over the machine's NUMA nodes (``llama_numa_init``).

    For machines with several nodes. Call it before the first model is loaded: a page of a mapped file stays on the node
    whose thread touched it first. It cannot be taken back, and a second call changes nothing.

    Args:
        strategy: "distribute" over all nodes, "isolate" on the node of this thread, or "numactl" for the CPUs that numactl
            gave to the process.
    """
    strategies = {
        "distribute": lib.GGML_NUMA_STRATEGY_DISTRIBUTE,
        "isolate": lib.GGML_NUMA_STRATEGY_ISOLATE,
        "numactl": lib.GGML_NUMA_STRATEGY_NUMACTL,
    }
    if strategy not in strategies:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, strategies))}, not {strategy!r}")
    start()
    lib.llama_numa_init(strategies[strategy])


def supports() -> frozenset[str]:
    """Return which of ``mmap``, ``mlock`` and ``rpc`` this build can do (``llama_supports_mmap`` and its like)."""
    start()
    return frozenset(name for name in ("mmap", "mlock", "rpc") if getattr(lib, f"llama_supports_{name}")())


def system_info() -> str:
    """Return llama.cpp's own line about its backends and their features (``llama_print_system_info``)."""
    start()
    with _once:  # the library has one buffer for it
        return text_of(lib.llama_print_system_info())


def features() -> dict[str, dict[str, str]]:
    """Return each backend's compiled-in features, for instance ``{"CPU": {"AVX2": "1"}}``."""
    start()
    result: dict[str, dict[str, str]] = {}
    for index in range(lib.ggml_backend_reg_count()):
        reg = lib.ggml_backend_reg_get(index)
        address = lib.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_get_features")
        named = result.setdefault(text_of(lib.ggml_backend_reg_name(reg)), {})
        if address:
            feature = ffi.cast("ggml_backend_get_features_t", address)(reg)
            while feature.name:
                named[text_of(feature.name)] = text_of(feature.value)
                feature += 1
    return result


def build_info() -> BuildInfo:
    """Return versions, compiler and CMake options of this build."""
    return BuildInfo(
        llama_cpp=text_of(lib.llama_version()),
        commit=text_of(lib.og_build_commit()),
        compiler=text_of(lib.og_build_compiler()),
        flags=tuple(text_of(lib.og_build_flags()).split()),
    )


def default_threads() -> int:
    """Return the number of threads that a context uses by default: the physical cores that this process may run on.

    Two hardware threads of one core share its arithmetic units, on which a matrix product waits. They count as one.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            cores.add(siblings.read_text(encoding="ascii"))
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))
