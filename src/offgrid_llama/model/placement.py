"""Placement: the devices that a model uses, and the number of its layers that fit into their memory.

llama.cpp can simulate a model and a context on it (``llama_model_params.no_alloc``): it reads the header, gives each layer
a device, builds the graphs and measures them. It tells the figures in its log only, rounded to 0.01 MiB, so they are read
there. The log has no figures for the weights, which are added up from the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from offgrid_llama._capi import lib
from offgrid_llama.errors import BackendError, ContextError, ModelLoadError
from offgrid_llama.native import rpc
from offgrid_llama.native.backend import Device, describe, device, has_gpu, pointer
from offgrid_llama.native.callbacks import whole_log
from offgrid_llama.native.check import not_null, text_of
from offgrid_llama.native.enums import LoadMode
from offgrid_llama.native.kinds import listed

from .params import ContextParams, ModelParams, default_n_ctx

__all__ = ["DEFAULT_FIT_MARGIN_BYTES", "Simulation", "choose", "place", "simulate"]

DEFAULT_FIT_MARGIN_BYTES = 2**30
"""Bytes of each device that "auto" leaves free: other programs run there, and a simulation does not see everything."""

LoadFunction = Callable[[Any], Any]
"""Loads a model with a ``llama_model_params``, and returns its ``llama_model *``, or NULL."""

_MIB = r"\s*([\d.]+) MiB"
_KV_CACHE = re.compile(rf"[:,] size ={_MIB}")  # the line of each cache; "KV buffer size" is 0 in a simulation
_COMPUTE = re.compile(rf"(\S+) compute buffer size ={_MIB}")
_OUTPUT = re.compile(rf"output buffer size ={_MIB}")
_LAYER = re.compile(r"layer\s+(\d+) assigned to device (\S+),")
_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")


@dataclass(frozen=True)
class Simulation:
    """The memory of a model and a context, in bytes.

    ``devices`` has the part of each device that a layer is on, by name, with the CPU; weights of no layer are on the CPU.
    """

    n_ctx: int
    n_layer: int
    weights: int
    kv_cache: int
    compute: int
    output: int
    devices: dict[str, int]


def choose(devices: Sequence[Device | str] | None) -> tuple[Device, ...] | None:
    """Return the Devices for ``devices=``: Devices, names, or addresses of RPC servers. None stays None."""
    if devices is None:
        return None
    if isinstance(devices, (str, Device)):
        raise TypeError(f"devices must be a sequence, such as [{devices!r}]")
    wanted = enumerate(listed("devices", devices, "Devices"))
    found = [chosen for i, each in wanted for chosen in _found(f"devices[{i}]", each)]
    for chosen in found:
        if chosen.type not in ("GPU", "IGPU"):
            raise ValueError(
                f"{chosen.name} is no GPU: it computes the layers that are on no GPU, and need not be named"
            )
        if found.count(chosen) > 1:
            raise ValueError(f"{chosen.name} is in devices more than once")
    if len(found) > lib.llama_max_devices():
        raise ValueError(f"devices must be at most {lib.llama_max_devices()}, not {len(found)}")
    return tuple(found)


def _found(name: str, wanted: object) -> Sequence[Device]:
    if isinstance(wanted, Device):
        if wanted.backend == rpc.BACKEND:
            rpc.connect(wanted.description)  # its server may be gone
        return [wanted]
    if not isinstance(wanted, str):
        raise TypeError(f"{name} must be a Device or str, not {type(wanted).__name__}")
    return rpc.connect(wanted) if ":" in wanted else [device(wanted)]


def place(
    load: LoadFunction,
    sizes: Mapping[str, int],
    params: ModelParams,
    n_gpu_layers: int | Literal["auto"],
    margin_bytes: int = DEFAULT_FIT_MARGIN_BYTES,
) -> ModelParams:
    """Return the parameters with ``n_gpu_layers``. "auto" is the number that fits, by ``simulate(load, sizes, ...)``.

    Raises BackendError for layers on a GPU without a GPU.
    """
    gpu = has_gpu() if params.devices is None else bool(params.devices)
    if n_gpu_layers == "auto":
        return replace(params, n_gpu_layers=_fit(load, sizes, params, margin_bytes) if gpu else 0)
    params = replace(params, n_gpu_layers=n_gpu_layers)
    if n_gpu_layers and not gpu:
        reason = "this build has no GPU backend, or finds no GPU" if params.devices is None else "devices is empty"
        raise BackendError(
            f"n_gpu_layers={n_gpu_layers}, but {reason}. Build a backend in, for instance with "
            "pip install . --config-settings=cmake.define.GGML_CUDA=ON, or use n_gpu_layers=0"
        )
    return params


def simulate(
    load: LoadFunction, sizes: Mapping[str, int], params: ModelParams, context: Callable[[int], ContextParams]
) -> Simulation:
    """Load a model and make a context on it, both without allocating.

    Args:
        load: loads the model with a ``llama_model_params``.
        sizes: the bytes of its tensors, by name.
        params: the parameters of the load; the load mode is not used.
        context: returns the context's parameters for the number of positions that the model was trained for.

    Raises ModelLoadError and ContextError as a real load does.
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
    blocks = [layers[layer] for layer in sorted(layers)[:-1]]  # the last one is the output
    for name in blocks if wanted.offload_kqv else ["CPU"] * len(blocks):
        used[name] += -(-kv_cache // len(blocks))
    for name in used:
        used[name] += compute.get(_buffer_type(name, params), 0) + (output if name == "CPU" else 0)
    return Simulation(n_ctx, len(blocks), weights, kv_cache, sum(compute.values()), output, dict(used))


def _fit(load: LoadFunction, sizes: Mapping[str, int], params: ModelParams, margin_bytes: int) -> int:
    """Return the ``n_gpu_layers`` that the devices have memory for, with ``margin_bytes`` left on each; -1 is all.

    A context of 4,096 positions, or of the model's training length if that is less, is counted in.
    """

    def simulated(n_gpu_layers: int) -> Simulation:
        return simulate(load, sizes, replace(params, n_gpu_layers=n_gpu_layers), lambda n_ctx_train: ContextParams(
            n_ctx=default_n_ctx(n_ctx_train)
        ))  # fmt: skip

    def fits(simulation: Simulation) -> bool:
        free = {name: _device(name, params).memory_free for name in simulation.devices if name != "CPU"}
        return all(simulation.devices[name] + margin_bytes <= free[name] for name in free)

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
        used[output] += sizes.get("token_embd.weight", 0)  # it serves as the output, too, and is on both devices
    return used


def _device(name: str, params: ModelParams) -> Device:
    known = {device.name: device for device in params.devices or ()}
    return describe(pointer(known[name])) if name in known else device(name)


def _buffer_type(name: str, params: ModelParams) -> str:
    """Return the name of a device's memory in llama.cpp's log."""
    return text_of(lib.ggml_backend_buft_name(lib.ggml_backend_dev_buffer_type(pointer(_device(name, params)))))


def _bytes(mib: str) -> int:
    return round(float(mib) * 2**20)


def _short(params: ContextParams) -> str:
    return f"n_ctx={params.n_ctx}, n_seq_max={params.n_seq_max}, type_k={params.type_k}, type_v={params.type_v}"
