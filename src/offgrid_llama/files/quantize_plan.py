"""llama.cpp's plan for ``quantize``, read from its log, and the refusal of work on which it would abort.

llama.cpp aborts the process on tensors that it cannot quantize as asked, some of them after an hour. A dry run takes a
moment and logs a line for each tensor; the plan shows in advance which work is impossible.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from offgrid_llama._capi import lib
from offgrid_llama.errors import ModelSaveError
from offgrid_llama.native.callbacks import whole_log
from offgrid_llama.native.check import text_of

from .gguf import GGUF, Tensor
from .quantize_params import FTYPES, NativeParams, QuantizeParams, tensor_type

if TYPE_CHECKING:
    from .imatrix import Imatrix

__all__ = ["PlannedTensor", "check_plan", "check_tensors", "check_weights", "read_plan"]

MAX_WEIGHT = 1e8
"""Largest magnitude of a weight that becomes IQ1, IQ2 or IQ3: sums of larger ones leave float32, and llama.cpp aborts."""
WEIGHT_CHUNK_BYTES = 16 * 1024 * 1024
"""Bytes of weights in memory at a time while they are checked."""

_TABLES = frozenset({"token_embd.weight", "per_layer_token_embd.weight", "output.weight"})
_NEED_IMATRIX = frozenset({"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"})
_FEW_BITS = re.compile(r"iq[123]_")
_LAYER = re.compile(r"blk\.(\d+)\.")
_TENSOR = re.compile(
    r"\[ *(\d+)/ *\d+\] (\S+) +- \[([ \d,]+)\], type = +(\S+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\S+)\))?"
)
_TYPE_NUMBERS: dict[str, int] = {
    text_of(lib.ggml_type_name(number)): number for number in range(lib.GGML_TYPE_COUNT) if lib.ggml_type_name(number)
}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the plan.

    Attributes:
        name: in the new file. source_name: in the source, which is another one where layers are left out.
        shape: in ggml's order.
        source_type, type: before and after.
    """

    name: str
    source_name: str
    shape: tuple[int, ...]
    source_type: str
    type: str

    def n_bytes(self, kind: str) -> int:
        """Return the bytes of the tensor in a type."""
        return math.prod(self.shape[1:]) * int(lib.ggml_row_size(_TYPE_NUMBERS[kind], self.shape[0]))


def read_plan(source: Path, params: NativeParams, kept_layers: Sequence[int]) -> list[PlannedTensor]:
    """Return llama.cpp's plan for each tensor: a dry run, read from the log. Raises ModelSaveError as ``run`` does."""
    with whole_log() as lines:
        params.run(source, source, dry_run=True)
        found = [match for _, line in lines if (match := _TENSOR.fullmatch(line))]
    if [int(match[1]) for match in found] != list(range(1, len(found) + 1)):
        raise ModelSaveError(f"llama.cpp's plan for {source} cannot be read")

    def source_name(name: str) -> str:
        match = _LAYER.match(name)
        return name if match is None else f"blk.{kept_layers[int(match[1])]}.{name[match.end() :]}"

    return [
        PlannedTensor(name, source_name(name), tuple(int(size) for size in shape.split(",")), kind, new or kind)
        for _, name, shape, kind, new in (match.groups() for match in found)
    ]


def has_layers_elsewhere(tensors: Iterable[Tensor]) -> bool:
    """Whether a name has a layer behind another word, as an encoder's ``enc.blk.0`` has."""
    return any(_LAYER.search(tensor.name, 1) for tensor in tensors)


def check_tensors(source: Path, tensors: Iterable[Tensor], types_of_tables: Mapping[str, str]) -> None:
    """Refuse tensors on which llama.cpp aborts while it plans, and names that its log cannot carry."""
    for tensor in tensors:
        if not tensor.n_elements or not tensor.name.isprintable() or " " in tensor.name or not tensor.name:
            raise ModelSaveError(
                f"{source}: the tensor {tensor.name!r} has no elements, or its name is empty or not printable"
            )
        if tensor.name in _TABLES:
            _check_row(tensor, types_of_tables)


def _check_row(table: Tensor, types_of_tables: Mapping[str, str]) -> None:
    """Refuse a type whose blocks do not fit the rows of a table; for other tensors llama.cpp picks another type."""
    name = "output_tensor_type" if table.name == "output.weight" else "token_embedding_type"
    if name not in types_of_tables:
        return
    kind = types_of_tables[name]
    block = lib.ggml_blck_size(tensor_type(name, kind))
    if table.shape[0] % block:
        raise ValueError(
            f"{name} must not be {kind}: the rows of {table.name} have {table.shape[0]} columns, no multiple of {block}"
        )


def check_plan(plan: Iterable[PlannedTensor], params: QuantizeParams, importance: Imatrix) -> None:
    """Refuse a plan on which llama.cpp aborts, or fails after much work."""
    for tensor in plan:
        if tensor.type == tensor.source_type:
            continue
        if len(tensor.shape) > 3 and tensor.shape[3] > 1:
            raise ModelSaveError(f"{tensor.name} has four dimensions: llama.cpp cannot quantize it")
        if lib.ggml_is_quantized(_TYPE_NUMBERS[tensor.source_type]) and not params.allow_requantize:
            raise ValueError(f"{tensor.source_name} is of type {tensor.source_type} already: use allow_requantize=True")
        _check_importance(tensor, params, importance)


def _check_importance(tensor: PlannedTensor, params: QuantizeParams, importance: Imatrix) -> None:
    needed = _needs_importance(tensor, params)
    values = importance.get(tensor.source_name)
    if values is None:
        if needed:
            raise ValueError(f"{tensor.source_name} cannot be made {tensor.type} without an imatrix that has it")
        return
    size = tensor.shape[0] * tensor.shape[2]
    if values.size != size and (needed or tensor.name not in _TABLES):
        raise ValueError(f"imatrix[{tensor.source_name!r}] must have {size} values, not {values.size}")


def _needs_importance(tensor: PlannedTensor, params: QuantizeParams) -> bool:
    if lib.ggml_quantize_requires_imatrix(_TYPE_NUMBERS[tensor.type]):
        return True
    if tensor.name in _TABLES:
        return False
    return tensor.type in _NEED_IMATRIX or (tensor.type == "q2_K" and params.ftype_number == FTYPES["Q2_K_S"])


def check_weights(headers: Iterable[GGUF], plan: Iterable[PlannedTensor]) -> None:
    """Refuse weights that are too large for a type of few bits: those above ``MAX_WEIGHT`` in magnitude."""
    few_bits = {each.source_name for each in plan if each.type != each.source_type and _FEW_BITS.match(each.type)}
    for header in headers:
        with header.opened() as file:
            for tensor in header.tensors():
                if tensor.name in few_bits and tensor.type in ("f32", "bf16"):  # all other types are too small for it
                    _check_weights_of(header.path, file, tensor)


def _check_weights_of(path: Path, file: BinaryIO, tensor: Tensor) -> None:
    for largest in _largest_weights(file, tensor):
        if not largest <= MAX_WEIGHT:
            raise ModelSaveError(
                f"{path}: {tensor.name} has the weight {largest:g}; types of less than 4 bits take no more than "
                f"{MAX_WEIGHT:g}"
            )


def _largest_weights(file: BinaryIO, tensor: Tensor) -> Iterator[float]:
    """Yield the largest magnitude of each part of a tensor of float32 or bfloat16."""
    import numpy as np

    file.seek(tensor.offset)
    left = tensor.n_bytes
    while left > 0:
        data = file.read(min(left, WEIGHT_CHUNK_BYTES))
        if tensor.type == "f32":
            yield float(np.abs(np.frombuffer(data, np.float32)).max())
        else:  # the upper half of a float32
            bits = (np.frombuffer(data, np.uint16) & 0x7FFF).max()
            yield float((bits.astype(np.uint32) << np.uint32(16)).view(np.float32))
        left -= len(data)
