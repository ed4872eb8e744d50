"""Imatrix: the importance of each column of a tensor, as llama.cpp's imatrix tool measured it, for ``quantize``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi
from offgrid_llama.errors import GGUFError

from .gguf import GGUF, Tensor
from .overrides import MAX_TEXT_BYTES, Override

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Imatrix = dict[str, npt.NDArray[np.float32]]

__all__ = ["load_imatrix"]

MAX_IMPORTANCE = 1e10
"""Largest importance of a column: llama.cpp's sums of it over a row of weights stay within float32."""


def load_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read an importance matrix that llama.cpp's imatrix tool wrote as GGUF.

    Returns:
        The mean square of each tensor's input columns, by the tensor's name: float32[columns], or
        float32[experts, columns]. It is 1 for an expert that was never used.

    Raises:
        FileNotFoundError: there is no such file.
        GGUFError: the file is no GGUF, or no importance matrix. The older .dat format is not read.
    """
    import numpy as np

    result: Imatrix = {}
    with GGUF(path) as file:
        tensors = {tensor.name: tensor for tensor in file.tensors()}

        def read(tensor: Tensor) -> npt.NDArray[np.float32]:
            return np.fromfile(file.path, np.float32, tensor.n_elements, offset=tensor.offset)

        for name, sums in tensors.items():
            stem, _, part = name.rpartition(".")
            if part != "in_sum2":
                continue
            counts = tensors.get(f"{stem}.counts")
            if (
                counts is None
                or (sums.type, counts.type) != ("f32", "f32")
                or sums.n_elements % (counts.n_elements or 1)
            ):
                raise GGUFError(f"{path}: {name} and {stem}.counts are no importance matrix of {stem}")
            count = np.rint(read(counts))[:, None]
            total = read(sums).reshape(len(count), -1)
            mean = np.divide(total, count, out=np.ones_like(total), where=count > 0)
            result[stem] = mean if len(count) > 1 else mean[0]
    if not result:
        raise GGUFError(f"{path} has no tensors NAME.in_sum2: it is no importance matrix")
    return result


def importance_of(
    imatrix: str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | None,
) -> tuple[Imatrix, dict[str, Override]]:
    """Return an importance matrix by the tensors' names, and metadata about it for the new file."""
    if imatrix is None:
        return {}, {}
    about: dict[str, Override] = {}
    if not isinstance(imatrix, Mapping):
        path = imatrix
        imatrix = load_imatrix(path)
        with GGUF(path) as file:
            datasets, chunks = file.get("imatrix.datasets"), file.get("imatrix.chunk_count")
        about["quantize.imatrix.file"] = _short(os.fspath(path))
        if isinstance(datasets, list) and datasets:
            about["quantize.imatrix.dataset"] = _short(str(datasets[0]))
        about["quantize.imatrix.entries_count"] = len(imatrix)
        if isinstance(chunks, int) and chunks > 0:
            about["quantize.imatrix.chunks_count"] = chunks
    return {name: _values(name, values) for name, values in imatrix.items()}, about


def imatrix_array(imatrix: Imatrix) -> list[Any]:
    """Return a ``llama_model_imatrix_data[]`` that ends with NULL, and the arrays that it points to."""
    array = ffi.new("struct llama_model_imatrix_data[]", len(imatrix) + 1)
    keep = [array]
    for c, (name, values) in zip(array, imatrix.items(), strict=False):
        keep += [ffi.new("char[]", name.encode("utf-8")), ffi.from_buffer("float[]", values)]
        c.name, c.data, c.size = keep[-2], keep[-1], values.size
    return keep


def _short(text: str) -> str:
    return text.encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")


def _values(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    import numpy as np

    array = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if "\0" in name or not array.size or not 0 <= array.min() <= array.max() <= MAX_IMPORTANCE:
        raise ValueError(f"imatrix[{name!r}] must be numbers from 0 to {MAX_IMPORTANCE:g}")
    return array
