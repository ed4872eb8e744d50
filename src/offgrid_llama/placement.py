"""Where a model goes: which devices it may use, and how many of its layers fit into their memory.

llama.cpp can simulate a model and a context on it (``llama_model_params.no_alloc``): it reads the header, gives each layer
a device, builds the graphs and measures them. The figures come out in its log and nowhere else in llama.h, rounded to
0.01 MiB, so that is where they are read here. Of the weights it gives no figures; those are added up from the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import rpc
from ._callbacks import whole_log
from ._capi import lib
from ._check import not_null, text_of
from .backend import Device, describe, device, has_gpu, pointer
from .errors import BackendError, ContextError, ModelLoadError
from .params import ContextParams, LoadMode, ModelParams

__all__ = ["DEFAULT_N_CTX", "MARGIN", "Simulation", "choose", "place", "simulate"]

DEFAULT_N_CTX = 4096
MARGIN = 2**30
"""Bytes of each device that stay free: what else runs there, and what a simulation does not see."""

Load = Callable[[Any], Any]

_MIB = r"\s*([\d.]+) MiB"
_KV_CACHE = re.compile(rf"[:,] size ={_MIB}")  # the line of each cache; "KV buffer size" is 0 in a simulation
_COMPUTE = re.compile(rf"(\S+) compute buffer size ={_MIB}")
_OUTPUT = re.compile(rf"output buffer size ={_MIB}")
_LAYER = re.compile(r"layer\s+(\d+) assigned to device (\S+),")
_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")


@dataclass(frozen=True)
class Simulation:
    """What a model and a context would take, in bytes, and how much of it on each device, by name.

    ``devices`` has every device that a layer is on, the CPU among them; weights that belong to no layer are on the CPU.
    """

    n_ctx: int
    n_layer: int
    weights: int
    kv_cache: int
    compute: int
    output: int
    devices: dict[str, int]


def choose(devices: Sequence[Device | str] | None) -> tuple[Device, ...] | None:
    """Return the Devices that ``devices=`` stands for: Devices, names, or addresses of RPC servers. None stays None."""
    if devices is None:
        return None
    if isinstance(devices, (str, Device)):
        raise TypeError(f"devices must be a sequence, such as [{devices!r}]")
    found: list[Device] = []
    for i, wanted in enumerate(devices):
        if isinstance(wanted, Device) and wanted.backend == rpc.BACKEND:
            rpc.connect(wanted.description)  # is it still there?
        if isinstance(wanted, Device):
            found.append(wanted)
        elif not isinstance(wanted, str):
            raise TypeError(f"devices[{i}] must be a Device or str, not {type(wanted).__name__}")
        else:
            found += rpc.connect(wanted) if ":" in wanted else [device(wanted)]
    for chosen in found:
        if chosen.type not in ("GPU", "IGPU"):
            raise ValueError(
                f"{chosen.name} is no GPU: layers that are not on a GPU are computed there without being told"
            )
        if found.count(chosen) > 1:
            raise ValueError(f"{chosen.name} is in devices more than once")
    if len(found) > lib.llama_max_devices():
        raise ValueError(f"devices must be at most {lib.llama_max_devices()}, not {len(found)}")
    return tuple(found)


def place(
    load: Load, sizes: Mapping[str, int], params: ModelParams, n_gpu_layers: int | Literal["auto"], margin: int = MARGIN
) -> ModelParams:
    """Return the parameters with ``n_gpu_layers``; "auto" is what fits, as ``simulate(load, sizes, ...)`` says.

    Raises BackendError for layers on a GPU where there is none.
    """
    gpu = has_gpu() if params.devices is None else bool(params.devices)
    if n_gpu_layers == "auto":
        return replace(params, n_gpu_layers=_fit(load, sizes, params, margin) if gpu else 0)
    params = replace(params, n_gpu_layers=n_gpu_layers)
    if n_gpu_layers and not gpu:
        reason = "this build has no GPU backend, or finds no GPU" if params.devices is None else "devices is empty"
        raise BackendError(
            f"n_gpu_layers={n_gpu_layers}, but {reason}. Build a backend in, for instance with "
            "pip install . --config-settings=cmake.define.GGML_CUDA=ON, or use n_gpu_layers=0"
        )
    return params


def simulate(
    load: Load, sizes: Mapping[str, int], params: ModelParams, context: Callable[[int], ContextParams]
) -> Simulation:
    """Load a model and make a context on it, both without allocating.

    Args:
        load: loads the model with a ``llama_model_params``.
        sizes: the bytes of its tensors, by name.
        params: how to load it, but for the load mode.
        context: gives the context's parameters for the number of positions that the model was trained for.

    Raises ModelLoadError and ContextError as the real ones do.
    """
    c_params = replace(params, load_mode=LoadMode.NONE, vocab_only=False).to_c()
    c_params.no_alloc = True
    with whole_log() as lines:
        model = not_null(
            load(c_params), lambda log: ModelLoadError("the model could not be loaded", log=log), lib.llama_model_free
        )
        try:
            wanted = context(lib.llama_model_n_ctx_train(model))
            ptr = not_null(
                lib.llama_init_from_model(model, wanted.to_c()),
                lambda log: ContextError(f"no context with {_short(wanted)} could be planned", log=log),
            )
            n_ctx = lib.llama_n_ctx(ptr)
            lib.llama_free(ptr)
            weights = lib.llama_model_size(model)
        finally:
            lib.llama_model_free(model)
    log = "\n".join(line for _, line in lines)
    layers = {int(layer): name for layer, name in _LAYER.findall(log)}
    kv_cache = sum(map(_bytes, _KV_CACHE.findall(log)))
    output = sum(map(_bytes, _OUTPUT.findall(log)))
    compute = {name: _bytes(mib) for name, mib in _COMPUTE.findall(log)}

    used = _weights_by_device(sizes, layers)
    blocks = [layers[layer] for layer in sorted(layers)[:-1]]  # the last one stands for the output
    for name in blocks if wanted.offload_kqv else ["CPU"] * len(blocks):
        used[name] += -(-kv_cache // len(blocks))
    for name in used:
        used[name] += compute.get(_buffer_type(name, params), 0) + (output if name == "CPU" else 0)
    return Simulation(n_ctx, len(blocks), weights, kv_cache, sum(compute.values()), output, dict(used))


def _fit(load: Load, sizes: Mapping[str, int], params: ModelParams, margin: int) -> int:
    """Return the ``n_gpu_layers`` that the devices have memory for, ``margin`` bytes apart; -1 is all.

    With room for a context of 4,096 positions, or as many as the model was trained for.
    """

    def simulated(n_gpu_layers: int) -> Simulation:
        return simulate(load, sizes, replace(params, n_gpu_layers=n_gpu_layers), lambda n_ctx_train: ContextParams(
            n_ctx=min(n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
        ))  # fmt: skip

    def fits(simulation: Simulation) -> bool:
        free = {name: _device(name, params).memory_free for name in simulation.devices if name != "CPU"}
        return all(simulation.devices[name] + margin <= free[name] for name in free)

    whole = simulated(-1)
    if fits(whole):
        return -1
    most, too_many = 0, whole.n_layer + 1
    while too_many - most > 1:
        half = (most + too_many) // 2
        if fits(simulated(half)):
            most = half
        else:
            too_many = half
    return most


def _weights_by_device(sizes: Mapping[str, int], layers: dict[int, str]) -> Counter[str]:
    used: Counter[str] = Counter({"CPU": 0} | dict.fromkeys(layers.values(), 0))
    output = layers[max(layers)]
    for name, size in sizes.items():
        block = _BLOCK.search(name)
        if block is not None:
            used[layers.get(int(block[1]), "CPU")] += size
        else:
            used[output if name.startswith("output") else "CPU"] += size
    if "output.weight" not in sizes and output != "CPU":
        used[output] += sizes.get("token_embd.weight", 0)  # shared, and so on both
    return used


def _device(name: str, params: ModelParams) -> Device:
    known = {device.name: device for device in params.devices or ()}
    return describe(pointer(known[name])) if name in known else device(name)


def _buffer_type(name: str, params: ModelParams) -> str:
    """Return what llama.cpp's log calls a device's memory."""
    return text_of(lib.ggml_backend_buft_name(lib.ggml_backend_dev_buffer_type(pointer(_device(name, params)))))


def _bytes(mib: str) -> int:
    return round(float(mib) * 2**20)


def _short(params: ContextParams) -> str:
    return f"n_ctx={params.n_ctx}, n_seq_max={params.n_seq_max}, type_k={params.type_k}, type_v={params.type_v}"
