"""Opening: llama.h's context made and freed (``llama_init_from_model``), with the switch that stops its decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import ContextError
from offgrid_llama.native.callbacks import forget_log
from offgrid_llama.native.check import not_null
from offgrid_llama.native.handle import Handle

if TYPE_CHECKING:
    from offgrid_llama.model.model import Model
    from offgrid_llama.model.params import ContextParams
    from offgrid_llama.native.threadpool import ThreadPool

    from .adapters import LoRAsInUse

__all__ = ["opened_context"]


def opened_context(
    model: Model, params: ContextParams, threadpool: ThreadPool | None, cancel: Any, loras: LoRAsInUse
) -> Handle:
    """Return the Handle of a new context: a child of the model and of the thread pool, used by one thread at a time.

    Args:
        model, params, threadpool: what the context is made of.
        cancel: an ``og_cancel *``, which ggml reads between the nodes of a graph as long as the context lives. ``close()``
            sets it.
        loras: the adapters in use, which the context's end lets go of.

    Raises ContextError, with the log, where llama.cpp refuses.
    """

    def free(ptr: Any) -> None:
        lib.llama_free(ptr)
        lib.og_release_threads()
        loras.clear()

    def request_stop() -> None:
        cancel.requested = 1

    c_params = params.to_c()
    c_params.abort_callback = ffi.addressof(lib, "og_should_abort")
    c_params.abort_callback_data = cancel
    forget_log()
    with model.handle as model_ptr:
        ptr = not_null(
            lib.llama_init_from_model(model_ptr, c_params),
            lambda log: ContextError(f"no context could be made for {model.handle.name}", log=log),
            lib.llama_free,
        )
        pool = () if threadpool is None else (threadpool.handle,)  # llama.cpp looks at it as long as the context lives
        name = f"Context of {model.handle.name}"
        return Handle(name, ptr, free, model.handle, *pool, cancel=request_stop, exclusive=True)
