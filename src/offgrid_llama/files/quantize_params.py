"""The parameters of ``quantize``, checked, and the struct of llama.h that they become (``llama_model_quantize_params``)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import ModelSaveError
from offgrid_llama.native.backend import default_threads
from offgrid_llama.native.callbacks import forget_log, raise_pending, recent_log
from offgrid_llama.native.check import number, raise_caught, text_of

from .imatrix import imatrix_array
from .overrides import Override, kv_array, regex

if TYPE_CHECKING:
    from .imatrix import Imatrix

__all__ = ["FTYPES", "TENSOR_TYPES", "NativeParams", "QuantizeParams", "tensor_type"]

FTYPES: dict[str, int] = {
    "F32": lib.LLAMA_FTYPE_ALL_F32,
    **{
        name: getattr(lib, f"LLAMA_FTYPE_MOSTLY_{name}")
        for name in (
            "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL",
            "IQ4_XS", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S",
            "Q2_0", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "TQ1_0", "IQ1_M", "IQ1_S", "Q1_0",
        )
    },
}  # fmt: skip
"""The mixtures of types that a model can be quantized to, by name (``llama_ftype``), from large to small."""

TENSOR_TYPES: dict[str, int] = {
    text_of(lib.ggml_type_name(getattr(lib, f"GGML_TYPE_{name}"))).lower(): getattr(lib, f"GGML_TYPE_{name}")
    for name in (
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4",
        "NVFP4", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "Q2_0", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "TQ1_0", "IQ1_M",
        "IQ1_S", "Q1_0",
    )
}  # fmt: skip
"""The types that llama.cpp can make tensors of; it aborts on any other."""

MAX_BUFFER_BYTES = 2**62
"""Limit of ``max_buf_size``: far above any machine, and within int64."""


@dataclass(frozen=True)
class QuantizeParams:
    """The parameters that hold for any source, described by ``quantize``. Raises TypeError or ValueError, with the name."""

    ftype: str = "Q4_K_M"
    n_threads: int | None = None
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    allow_requantize: bool = False
    quantize_output_tensor: bool = True
    only_copy: bool = False
    pure: bool = False
    keep_split: bool = False
    tensor_types: Mapping[str, str] = field(default_factory=dict)
    max_buf_size: int = 0

    def __post_init__(self) -> None:
        for name, value in self.switches().items():
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, not {type(value).__name__}")
        _named("ftype", self.ftype, FTYPES)
        if self.n_threads is not None:
            number("n_threads", self.n_threads, 1)
        number("max_buf_size", self.max_buf_size, 0, MAX_BUFFER_BYTES)
        for name, kind in self.types_of_tables().items():
            tensor_type(name, kind)
        for pattern, kind in self.tensor_types.items():
            regex("tensor_types", pattern)
            tensor_type(f"tensor_types[{pattern!r}]", kind)

    def switches(self) -> dict[str, bool]:
        """Return the parameters that are True or False, by the names of llama.h."""
        names = ("allow_requantize", "quantize_output_tensor", "only_copy", "pure", "keep_split")
        return {name: getattr(self, name) for name in names}

    def types_of_tables(self) -> dict[str, str]:
        """Return ``output_tensor_type`` and ``token_embedding_type`` where they are given."""
        given = {"output_tensor_type": self.output_tensor_type, "token_embedding_type": self.token_embedding_type}
        return {name: kind for name, kind in given.items() if kind is not None}

    @property
    def ftype_number(self) -> int:
        """The number of ``ftype`` in llama.h."""
        return _named("ftype", self.ftype, FTYPES)


class NativeParams:
    """A ``llama_model_quantize_params``, and the arrays that it points to.

    Args:
        params: the checked parameters.
        keep_split: whether to write the splits of the source; the source may have none.
        metadata: values to write into the new file.
        importance: the importance matrix; None for none.
        pruned_layers: layers to leave out.
    """

    def __init__(
        self,
        params: QuantizeParams,
        *,
        keep_split: bool,
        metadata: Mapping[str, Override],
        importance: Imatrix | None,
        pruned_layers: Sequence[int],
    ) -> None:
        c = lib.llama_model_quantize_default_params()
        threads = default_threads() if params.n_threads is None else params.n_threads
        c.ftype = params.ftype_number
        c.nthread = min(threads, os.cpu_count() or 1)
        c.max_buf_size = params.max_buf_size
        for name, switch in params.switches().items():
            setattr(c, name, switch)
        for name, kind in params.types_of_tables().items():
            setattr(c, name, tensor_type(name, kind))
        c.keep_split = keep_split
        matrices, types = imatrix_array(importance or {}), _type_array(params.tensor_types)
        c.kv_overrides = overrides = kv_array(metadata)
        c.tt_overrides = types[0]
        c.prune_layers = pruned = ffi.new("int32_t[]", [*pruned_layers, -1])
        c.imatrix = ffi.NULL if importance is None else matrices[0]
        self._c = c
        self._arrays = matrices, types, overrides, pruned

    def run(self, source: Path, target: Path, *, dry_run: bool = False) -> None:
        """Call ``llama_model_quantize``; ``dry_run`` logs the plan and writes nothing.

        Raises ModelSaveError with llama.cpp's log, and the exception of a callback that listens to the log.
        """
        forget_log()
        params = ffi.new("llama_model_quantize_params *", self._c)
        params.dry_run = dry_run
        code = lib.og_quantize(os.fsencode(source), os.fsencode(target), params)
        raise_pending()
        raise_caught()
        if code:
            raise ModelSaveError(f"{source} could not be quantized", log=recent_log())


def tensor_type(name: str, value: object) -> int:
    """Return the number of a tensor's type by its name. Raises TypeError or ValueError, which have the argument's name."""
    return _named(name, value, TENSOR_TYPES)


def _named(name: str, value: object, table: Mapping[str, int]) -> int:
    keys = {key.lower(): number for key, number in table.items()}
    if not isinstance(value, str) or value.lower() not in keys:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} must be one of {', '.join(table)}, not {value!r}")
    return keys[value.lower()]


def _type_array(tensor_types: Mapping[str, str]) -> list[Any]:
    """Return a ``llama_model_tensor_override[]`` that ends with NULL, and the strings that it points to."""
    array = ffi.new("struct llama_model_tensor_override[]", len(tensor_types) + 1)
    keep = [array]
    for c, (pattern, kind) in zip(array, tensor_types.items(), strict=False):
        keep.append(ffi.new("char[]", regex("tensor_types", pattern)))
        c.pattern, c.type = keep[-1], tensor_type(f"tensor_types[{pattern!r}]", kind)
    return keep
