"""libllama in ctypes: the library that the extension runs on, whose functions have their types."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib_dir
from offgrid_llama.native import backend

from . import ctypes_of_cdef

if TYPE_CHECKING:
    from offgrid_llama.native.handle import Owner

DEPRECATED = {
    "llama_load_model_from_file": "llama_model_load_from_file",
    "llama_free_model": "llama_model_free",
    "llama_new_context_with_model": "llama_init_from_model",
    "llama_n_ctx_train": "llama_model_n_ctx_train",
    "llama_n_embd": "llama_model_n_embd",
    "llama_n_layer": "llama_model_n_layer",
    "llama_n_head": "llama_model_n_head",
    "llama_n_vocab": "llama_vocab_n_tokens",
    "llama_get_state_size": "llama_state_get_size",
    "llama_copy_state_data": "llama_state_get_data",
    "llama_set_state_data": "llama_state_set_data",
    "llama_load_session_file": "llama_state_load_file",
    "llama_save_session_file": "llama_state_save_file",
    "llama_token_get_text": "llama_vocab_get_text",
    "llama_token_get_score": "llama_vocab_get_score",
    "llama_token_get_attr": "llama_vocab_get_attr",
    "llama_token_is_eog": "llama_vocab_is_eog",
    "llama_token_is_control": "llama_vocab_is_control",
    "llama_token_bos": "llama_vocab_bos",
    "llama_token_eos": "llama_vocab_eos",
    "llama_token_eot": "llama_vocab_eot",
    "llama_token_cls": "llama_vocab_bos",
    "llama_token_sep": "llama_vocab_sep",
    "llama_token_nl": "llama_vocab_nl",
    "llama_token_pad": "llama_vocab_pad",
    "llama_add_bos_token": "llama_vocab_get_add_bos",
    "llama_add_eos_token": "llama_vocab_get_add_eos",
    "llama_token_fim_pre": "llama_vocab_fim_pre",
    "llama_token_fim_suf": "llama_vocab_fim_suf",
    "llama_token_fim_mid": "llama_vocab_fim_mid",
    "llama_token_fim_pad": "llama_vocab_fim_pad",
    "llama_token_fim_rep": "llama_vocab_fim_rep",
    "llama_token_fim_sep": "llama_vocab_fim_sep",
    "llama_vocab_cls": "llama_vocab_bos",
    "llama_sampler_init_grammar_lazy": "llama_sampler_init_grammar_lazy_patterns",
}
"""Functions that ``_capi/unbound.txt`` leaves out of the cdef because they are deprecated, each with its successor.

A call warns, as it does in llama-cpp-python. Their types are those of their successors but for ``UNDECLARED``.
"""

UNDECLARED = {
    "llama_copy_state_data": "size_t(*)(struct llama_context *, uint8_t *)",  # without the size of the buffer
    "llama_set_state_data": "size_t(*)(struct llama_context *, const uint8_t *)",
    "llama_set_warmup": "void(*)(struct llama_context *, bool)",  # it has no successor, and does not warn
}
"""The types of functions that the cdef leaves out, and that are not those of a successor."""

ARGUMENTS: dict[tuple[str, int], Any] = {
    ("llama_opt_epoch", 5): ctypes.c_void_p,
    ("llama_opt_epoch", 6): ctypes.c_void_p,
}
"""Arguments that are plain addresses: callbacks that may be NULL, which a ``CFUNCTYPE`` refuses to be."""


class Library(ctypes.CDLL):
    """A library whose functions have their types when they are first looked up, as far as they are known."""

    def __getitem__(self, name: Any) -> Any:
        function = super().__getitem__(name)
        ctype = type_of(name)
        if ctype is not None:
            function.argtypes = [
                ARGUMENTS.get((name, index)) or ctypes_of_cdef.ctypes_of(argument)
                for index, argument in enumerate(ctype.args)
            ]
            function.restype = ctypes_of_cdef.ctypes_of(ctype.result)
        return function


def address(owner: Owner) -> int:
    """Return the pointer of a Model or a Context, which owns it further."""
    with owner.handle as pointer:
        return int(ffi.cast("uintptr_t", pointer))


def type_of(name: str) -> Any:
    """Return cffi's type of a function, None if it is not known."""
    if name in UNDECLARED:
        return ctypes_of_cdef.parse(UNDECLARED[name])
    return ctypes_of_cdef.function_type(DEPRECATED.get(name, name))


@functools.cache
def opened() -> Library:
    """Start llama.cpp as the rest of this package does, and return the library that it has loaded.

    The functions of ggml are found through it, too.
    """
    backend.start()
    suffix = "dylib" if sys.platform == "darwin" else "so"
    return Library(str(lib_dir() / f"libllama.{suffix}"))
