"""The raw layer: llama.h in ctypes, under the names that llama-cpp-python 0.3.36 has in ``llama_cpp.llama_cpp``.

**Nothing guards a call here.** No argument is checked. A pointer that was freed crashes the process, and so does a failed
assertion or a C++ exception in llama.cpp. Use ``offgrid_llama.Model``, ``Context`` or ``Engine`` for guarded calls.

Each name is made when it is first asked for, from the declarations of ``_capi/llama.cdef.h``. Functions and structs of ggml
that are declared there can be had as well.

The functions are those of the library that the rest of this package runs on. The first one that is asked for starts it: the
backends are loaded, and the log goes to the logger ``offgrid_llama.llama_cpp``. ``llama_log_set`` takes the log away from
that logger, and from the errors of ``offgrid_llama``, which have no lines of the log then.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from typing import Any, NewType

from . import ctypes_of_cdef, library

POINTED = {
    "llama_token_p": "llama_token",
    "llama_token_data_p": "llama_token_data",
    "llama_token_data_array_p": "llama_token_data_array",
    "llama_logit_bias_p": "llama_logit_bias",
    "llama_sampler_p_ctypes": "llama_sampler",
}
"""Names for pointers to what ctypes knows."""

PRE_TYPES = [
    "DEFAULT", "LLAMA3", "DEEPSEEK_LLM", "DEEPSEEK_CODER", "FALCON", "MPT", "STARCODER", "GPT2", "REFACT", "COMMAND_R",
    "STABLELM2", "QWEN2", "OLMO", "DBRX", "SMAUG", "PORO", "CHATGLM3", "CHATGLM4", "VIKING", "JAIS", "TEKKEN", "SMOLLM",
    "CODESHELL", "BLOOM", "GPT3_FINNISH", "EXAONE", "CHAMELEON", "MINERVA", "DEEPSEEK3_LLM", "GPT4O", "SUPERBPE",
    "TRILLION", "BAILINGMOE", "LLAMA4", "PIXTRAL", "SEED_CODER",
]  # fmt: skip
"""The enum ``llama_vocab_pre_type``, which llama.h has no longer, and llama-cpp-python still has."""

# Names for addresses: an int to a type checker, ``c_void_p`` to ctypes.
llama_vocab_p = NewType("llama_vocab_p", int)
llama_model_p = NewType("llama_model_p", int)
llama_context_p = NewType("llama_context_p", int)
llama_memory_t = NewType("llama_memory_t", int)
llama_kv_cache_p = NewType("llama_kv_cache_p", int)
llama_batch_ext_p = NewType("llama_batch_ext_p", int)
gguf_context_p = NewType("gguf_context_p", int)
llama_vocab_p_ctypes = ctypes.c_void_p
llama_model_p_ctypes = ctypes.c_void_p
llama_context_p_ctypes = ctypes.c_void_p
llama_memory_t_ctypes = ctypes.c_void_p
llama_kv_cache_p_ctypes = ctypes.c_void_p
llama_batch_ext_p_ctypes = ctypes.c_void_p
gguf_context_p_ctypes = ctypes.c_void_p
llama_adapter_lora_p = ctypes.c_void_p
llama_adapter_lora_p_ctypes = ctypes.POINTER(ctypes.c_void_p)

byref = ctypes.byref

OTHERS = [
    "LLAMA_MAX_DEVICES", "byref", "ggml_abort_callback", "ggml_backend_sched_eval_callback", "llama_log_callback",
    "llama_model_kv_override_value",
]  # fmt: skip
"""Further names that ``import *`` brings."""

SAMPLER_CALLBACK = "llama_sampler_i_"
"""How the names of a sampler's callbacks begin: the rest is the field's name."""


def __getattr__(name: str) -> Any:
    """Make what has that name, and keep it."""
    made = globals()[name] = _make(name)
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _make(name: str) -> Any:
    if name == "_lib":
        return library.opened()
    for maker in (_constant, _function, _type):
        made = maker(name)
        if made is not None:
            return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _constant(name: str) -> int | None:
    """Return the value of a macro or of an enum's constant, None if there is none of that name."""
    if name == "LLAMA_MAX_DEVICES":
        devices: int = __getattr__("llama_max_devices")()
        return devices
    pre_type = name.removeprefix("LLAMA_VOCAB_PRE_TYPE_")
    if pre_type != name and pre_type in PRE_TYPES:
        return PRE_TYPES.index(pre_type)
    return ctypes_of_cdef.constant(name)


def _function(name: str) -> Any:
    """Return the function of that name, None if there is none."""
    if name in RENAMED:
        return _warning(name, *RENAMED[name])
    if library.type_of(name) is None:
        return None
    function = getattr(library.opened(), name)
    return _warning(name, library.DEPRECATED[name], function) if name in library.DEPRECATED else function


def _warning(name: str, successor: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that warns that it is deprecated, and then is ``function``."""

    def deprecated(*arguments: Any) -> Any:
        warnings.warn(f"{name} is deprecated: use {successor}", DeprecationWarning, stacklevel=2)
        return function(*arguments)

    deprecated.__name__ = deprecated.__qualname__ = name
    deprecated.__wrapped__ = function  # type: ignore[attr-defined]  # as functools.wraps leaves it
    return deprecated


def _set_adapter_lora(ctx: Any, adapter: Any, scale: float) -> Any:
    adapters, scales = (llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(scale)
    return __getattr__("llama_set_adapters_lora")(ctx, adapters, 1, scales)


def _apply_adapter_cvec(*arguments: Any) -> Any:
    return __getattr__("llama_set_adapter_cvec")(*arguments)


RENAMED: dict[str, tuple[str, Callable[..., Any]]] = {
    "llama_set_adapter_lora": ("llama_set_adapters_lora", _set_adapter_lora),
    "llama_apply_adapter_cvec": ("llama_set_adapter_cvec", _apply_adapter_cvec),
}
"""Functions that llama.h has no longer, and llama-cpp-python still has: successor, and how that is called."""


def _type(name: str) -> Any:
    """Return the struct, the pointer, the callback or the number of that name, None if there is none."""
    if name in POINTED:
        return ctypes.POINTER(__getattr__(POINTED[name]))
    if name == "llama_log_callback":
        return ctypes_of_cdef.named_type("ggml_log_callback")
    if name == "llama_model_kv_override_value":
        return dict(__getattr__("llama_model_kv_override")._fields_)["value"]
    field = name.removeprefix(SAMPLER_CALLBACK)
    if field != name:
        return dict(__getattr__("llama_sampler_i")._fields_).get(field)
    return ctypes_of_cdef.named_type(name)


def _names() -> list[str]:
    """Return the names that ``import *`` brings: those of llama.h, and what llama-cpp-python has beside them."""
    here = [name for name in globals() if name.startswith(("llama_", "gguf_"))]
    cdef = [name for name in ctypes_of_cdef.names() if name.startswith(("llama_", "LLAMA_", "GGML_"))]
    functions = [*library.DEPRECATED, *library.UNDECLARED, *RENAMED]
    pre_types = [f"LLAMA_VOCAB_PRE_TYPE_{name}" for name in PRE_TYPES]
    callbacks = [SAMPLER_CALLBACK + field for field in ctypes_of_cdef.fields("llama_sampler_i")]
    return sorted({*here, *cdef, *functions, *pre_types, *callbacks, *POINTED, *OTHERS})


__all__ = _names()  # noqa: PLE0605 - made from the cdef, as the names themselves are
