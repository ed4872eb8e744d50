"""quantize: a model's weights in another type, in a new file (``llama_model_quantize``).

llama.cpp ends the process over tensors that it cannot quantize as asked, some of them after an hour. So it is first asked
for its plan, which takes a moment (``dry_run``) and comes out in its log; what the plan shows to be impossible is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._callbacks import forget_log, listening, raise_pending, recent_log, whole_log
from ._capi import ffi, lib
from ._check import number, raise_caught, text_of
from .backend import default_threads, start
from .errors import ModelSaveError
from .gguf import GGUF, Tensor
from .imatrix import imatrix_array, importance_of
from .overrides import Override, checked, kv_array, regex
from .replacing import replacing
from .splits import opened_all, split_path

if TYPE_CHECKING:
    import numpy.typing as npt

    from .imatrix import Imatrix

__all__ = ["FTYPES", "Quantized", "quantize"]

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
"""What a model can be quantized to, by name (``llama_ftype``), from large to small."""

TYPES: dict[str, int] = {
    text_of(lib.ggml_type_name(getattr(lib, f"GGML_TYPE_{name}"))).lower(): getattr(lib, f"GGML_TYPE_{name}")
    for name in (
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4",
        "NVFP4", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "Q2_0", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "TQ1_0", "IQ1_M",
        "IQ1_S", "Q1_0",
    )
}  # fmt: skip
"""The types that llama.cpp can make tensors of; of any other it aborts."""

_FREE_OF_IMATRIX = frozenset({"token_embd.weight", "per_layer_token_embd.weight", "output.weight"})
_IN_NEED_OF_IMATRIX = frozenset({"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"})
_ALIGNMENT = "general.alignment"
MAX_WEIGHT = 1e8
"""Of a tensor that becomes one of IQ1, IQ2 and IQ3, in magnitude: above, their sums leave float32, and llama.cpp aborts."""
_LOW = re.compile(r"iq[123]_")
_CHUNK = 16 * 1024 * 1024
_LAYER = re.compile(r"blk\.(\d+)\.")
_TENSOR = re.compile(
    r"\[ *(\d+)/ *\d+\] (\S+) +- \[([ \d,]+)\], type = +(\S+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\S+)\))?"
)


@dataclass(frozen=True)
class Quantized:
    """What was made, or would be.

    Attributes:
        n_bytes_source, n_bytes: of all tensors, before and after.
        types: each tensor's new type, by its name in the new file.
    """

    n_bytes_source: int
    n_bytes: int
    types: dict[str, str]


@dataclass(frozen=True)
class _Line:
    """One tensor of llama.cpp's plan; its name in the source is another one when layers are left out."""

    name: str
    source_name: str
    shape: tuple[int, ...]
    source_type: str
    type: str

    def n_bytes(self, kind: str) -> int:
        return math.prod(self.shape[1:]) * int(lib.ggml_row_size(_TYPE_NUMBERS[kind], self.shape[0]))


_TYPE_NUMBERS: dict[str, int] = {
    text_of(lib.ggml_type_name(number)): number for number in range(lib.GGML_TYPE_COUNT) if lib.ggml_type_name(number)
}


def quantize(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    ftype: str = "Q4_K_M",
    *,
    n_threads: int | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    allow_requantize: bool = False,
    quantize_output_tensor: bool = True,
    only_copy: bool = False,
    pure: bool = False,
    keep_split: bool = False,
    dry_run: bool = False,
    imatrix: str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | None = None,
    kv_overrides: Mapping[str, Override] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    prune_layers: Iterable[int] = (),
    max_buf_size: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Quantized:
    """Quantize a model file (``llama_model_quantize``). Under its name the new file is whole, or what was there before.

    Args:
        src: a GGUF file of float weights; the first one of a split model.
        dst: the new file; not ``src``. None with ``dry_run``.
        ftype: one of ``FTYPES``, in any case, such as "Q4_K_M": the mixture of types for the tensors.
        n_threads: the default is the number of physical cores.
        output_tensor_type, token_embedding_type: a type for ``output.weight`` and for the table of embeddings, such as
            "q8_0"; the default is the mixture's.
        allow_requantize: quantize what is quantized already; it loses more than quantizing the original does.
        quantize_output_tensor: quantize ``output.weight``.
        only_copy: change no tensor; ``ftype`` is ignored. It makes one file of splits.
        pure: the same type for all tensors instead of a mixture.
        keep_split: write as many splits as ``src`` has, named after ``dst``.
        dry_run: change nothing, and return what would come out.
        imatrix: an importance matrix, which the types of less than 3 bits need: the GGUF file that llama.cpp's imatrix
            tool writes, or float32 by the tensor's name, of shape (columns,) or (experts, columns).
        kv_overrides: metadata to change, as for Model; an int must not be negative.
        tensor_types: other types for some tensors: from a regular expression (ECMAScript, searched for in the name, the
            first that is found counts) to a type. A pattern is the program's own, never a stranger's.
        prune_layers: layers to leave out, numbered from 0.
        max_buf_size: bytes of one tensor in memory at once; 0 is 8 GiB.
        progress: called with the number of tensors that are done, and of all, on this thread. What it raises, like
            Ctrl-C, ends the work after the tensor that is in work.

    Returns:
        The sizes, and each tensor's type.

    Raises:
        FileNotFoundError: there is no ``src``, or no folder for ``dst``.
        GGUFError: a file is no GGUF, or is damaged.
        ValueError, TypeError: an argument is out of its range, or asks for what cannot be done to this model.
        ModelSaveError: llama.cpp could not do it; the error carries its log.
    """
    start()
    source = Path(src)
    if (dst is None) is not dry_run:
        raise ValueError("dst must be a path, or None with dry_run=True")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable, not {type(progress).__name__}")
    switches: dict[str, Any] = {
        "allow_requantize": allow_requantize, "quantize_output_tensor": quantize_output_tensor, "only_copy": only_copy,
        "pure": pure, "keep_split": keep_split,
    }  # fmt: skip
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise TypeError(f"{name} must be True or False, not {type(switch).__name__}")
    c = lib.llama_model_quantize_default_params()
    c.ftype = _named("ftype", ftype, FTYPES)
    c.nthread = min(number("n_threads", default_threads() if n_threads is None else n_threads, 1), os.cpu_count() or 1)
    c.max_buf_size = number("max_buf_size", max_buf_size, 0, 2**62)
    for name, switch in switches.items():
        setattr(c, name, switch)
    wanted = {"output_tensor_type": output_tensor_type, "token_embedding_type": token_embedding_type}
    for name, kind in wanted.items():
        if kind is not None:
            setattr(c, name, _named(name, kind, TYPES))

    with opened_all([source]) as headers:
        overrides = checked(kv_overrides, headers[0])
        for header in headers:
            header.check(overrides)
        for key, value in overrides.items():
            if isinstance(value, int) and value < 0:
                raise ValueError(f"kv_overrides[{key!r}] must not be negative, but is {value}")
        tensors = [tensor for header in headers for tensor in header.tensors()]
        _check_tensors(source, tensors, wanted)
        c.keep_split = keep_split and len(headers) > 1
        if c.keep_split and any(not header.n_tensors for header in headers[1:]):
            raise ValueError(f"keep_split must be False: a later split of {source} has no tensors")
        layers = _kept_layers(headers[0], prune_layers, tensors, c.keep_split)
        importance, about = importance_of(imatrix)
        extra: dict[str, Override] = {**overrides, **about}
        if headers[0].get(_ALIGNMENT, lib.GGUF_DEFAULT_ALIGNMENT) != lib.GGUF_DEFAULT_ALIGNMENT:
            extra[_ALIGNMENT] = lib.GGUF_DEFAULT_ALIGNMENT  # llama.cpp copies the number, and aligns to 32 all the same
    metadata, matrices, types = kv_array(extra), imatrix_array(importance), _type_array(tensor_types or {})
    pruned = ffi.new("int32_t[]", [*layers[1], -1])
    c.kv_overrides, c.tt_overrides, c.prune_layers = metadata, types[0], pruned
    c.imatrix = matrices[0] if imatrix is not None else ffi.NULL

    plan = _plan(source, c, layers[0])
    if not dry_run:
        _check_plan(plan, importance, allow_requantize=allow_requantize, q2_k_s=c.ftype == FTYPES["Q2_K_S"])
        low = {line.source_name for line in plan if line.type != line.source_type and _LOW.match(line.type)}
        with opened_all([source]) as headers:
            for header in headers:
                _check_weights(header, low)
        _run([header.path for header in headers], Path(str(dst)), c, len(plan), progress)
    return Quantized(
        n_bytes_source=sum(line.n_bytes(line.source_type) for line in plan),
        n_bytes=sum(line.n_bytes(line.type) for line in plan),
        types={line.name: line.type for line in plan},
    )


def _named(name: str, value: object, table: Mapping[str, int]) -> int:
    keys = {key.lower(): number for key, number in table.items()}
    if not isinstance(value, str) or value.lower() not in keys:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} must be one of {', '.join(table)}, not {value!r}")
    return keys[value.lower()]


def _check_tensors(source: Path, tensors: Sequence[Tensor], wanted: Mapping[str, str | None]) -> None:
    """Refuse what llama.cpp aborts on while it plans, and names that its log cannot carry."""
    for tensor in tensors:
        if not tensor.n_elements or not tensor.name.isprintable() or " " in tensor.name or not tensor.name:
            raise ModelSaveError(f"{source}: the tensor {tensor.name!r} has no elements, or a name that is none")
        if tensor.name in _FREE_OF_IMATRIX:  # other tensors get another type where their rows are no whole blocks
            name = "output_tensor_type" if tensor.name == "output.weight" else "token_embedding_type"
            kind = wanted[name]
            block = lib.ggml_blck_size(TYPES[kind.lower()]) if kind is not None else 1
            if tensor.shape[0] % block:
                raise ValueError(
                    f"{name} must not be {kind}: the rows of {tensor.name} have {tensor.shape[0]} columns, no multiple of "
                    f"{block}"
                )


def _kept_layers(
    header: GGUF, prune_layers: Iterable[int], tensors: Sequence[Tensor], keep_split: bool
) -> tuple[list[int], list[int]]:
    """Return the layers that stay and those that go."""
    n_layer = header.hparam("block_count")
    gone = sorted({number("prune_layers: a layer", layer, 0, n_layer - 1) for layer in prune_layers})
    kept = [layer for layer in range(n_layer) if layer not in gone]
    if gone:
        per_layer = [key for key in header if header.array_length(key) == n_layer and not key.startswith("tokenizer.")]
        if keep_split or not kept or per_layer:
            why = (
                f"{per_layer[0]} has a value for each"
                if per_layer
                else "keep_split=True"
                if keep_split
                else "none is left"
            )
            raise ValueError(f"prune_layers: no layers of {header.path} can be left out, as {why}")
        if any(_LAYER.search(tensor.name, 1) for tensor in tensors):
            raise ValueError(f"prune_layers: {header.path} has more than one row of layers")
    return kept, gone


def _type_array(tensor_types: Mapping[str, str]) -> list[Any]:
    """Return a ``llama_model_tensor_override[]`` that ends with NULL, and what has to live as long as it."""
    array = ffi.new("struct llama_model_tensor_override[]", len(tensor_types) + 1)
    keep = [array]
    for c, (pattern, kind) in zip(array, tensor_types.items(), strict=False):
        keep.append(ffi.new("char[]", regex("tensor_types", pattern)))
        c.pattern, c.type = keep[-1], _named(f"tensor_types[{pattern!r}]", kind, TYPES)
    return keep


def _plan(source: Path, c: Any, layers: Sequence[int]) -> list[_Line]:
    """Return what llama.cpp would do with each tensor."""
    c.dry_run = True
    with whole_log() as lines:
        _call(source, source, c)
        found = [match for _, line in lines if (match := _TENSOR.fullmatch(line))]
    c.dry_run = False
    if [int(match[1]) for match in found] != list(range(1, len(found) + 1)):
        raise ModelSaveError(f"llama.cpp's plan for {source} cannot be read")

    def source_name(name: str) -> str:
        match = _LAYER.match(name)
        return name if match is None else f"blk.{layers[int(match[1])]}.{name[match.end() :]}"

    return [
        _Line(name, source_name(name), tuple(int(size) for size in shape.split(",")), kind, new or kind)
        for _, name, shape, kind, new in (match.groups() for match in found)
    ]


def _check_plan(plan: Sequence[_Line], importance: Imatrix, *, allow_requantize: bool, q2_k_s: bool) -> None:
    """Refuse what llama.cpp aborts on, or gives up on after much work."""
    for line in plan:
        if line.type == line.source_type:
            continue
        number = _TYPE_NUMBERS[line.type]
        if len(line.shape) > 3 and line.shape[3] > 1:
            raise ModelSaveError(f"{line.name} has four dimensions: llama.cpp cannot quantize it")
        if lib.ggml_is_quantized(_TYPE_NUMBERS[line.source_type]) and not allow_requantize:
            raise ValueError(f"{line.source_name} is of type {line.source_type} already: use allow_requantize=True")
        needs = line.type in _IN_NEED_OF_IMATRIX or (line.type == "q2_K" and q2_k_s)
        needs = (needs and line.name not in _FREE_OF_IMATRIX) or lib.ggml_quantize_requires_imatrix(number)
        values = importance.get(line.source_name)
        if needs and values is None:
            raise ValueError(f"{line.source_name} cannot be made {line.type} without an imatrix that has it")
        size = line.shape[0] * line.shape[2]
        if values is not None and values.size != size and (needs or line.name not in _FREE_OF_IMATRIX):
            raise ValueError(f"imatrix[{line.source_name!r}] must have {size} values, not {values.size}")


def _check_weights(header: GGUF, names: Iterable[str]) -> None:
    import numpy as np

    with header.opened() as file:
        for tensor in header.tensors():
            if tensor.name not in names or tensor.type not in ("f32", "bf16"):  # others are too small for it
                continue
            file.seek(tensor.offset)
            left = tensor.n_bytes
            while left > 0:
                data = file.read(min(left, _CHUNK))
                if tensor.type == "f32":
                    largest = np.abs(np.frombuffer(data, np.float32)).max()
                else:  # the upper half of a float32
                    bits = (np.frombuffer(data, np.uint16) & 0x7FFF).max()
                    largest = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
                if not largest <= MAX_WEIGHT:
                    raise ModelSaveError(
                        f"{header.path}: {tensor.name} has the weight {largest:g}; types of less than 4 bits take no "
                        f"more than {MAX_WEIGHT:g}"
                    )
                left -= len(data)


def _run(sources: Sequence[Path], dst: Path, c: Any, total: int, progress: Callable[[int, int], object] | None) -> None:
    def tell(line: str) -> None:
        match = re.match(r"\[ *(\d+)/", line)
        if match and progress is not None:
            progress(int(match[1]), total)

    prefix = dst.with_name(dst.name.removesuffix(".gguf"))
    count = len(sources)
    for target in [split_path(prefix, i, count) for i in range(count)] if c.keep_split else [dst]:
        if target.exists() and any(os.path.samefile(source, target) for source in sources):
            raise ValueError(f"dst must not be src: {target}")
    with replacing(dst) as unfinished:
        with listening(tell):
            _call(sources[0], unfinished.with_name(prefix.name) if c.keep_split else unfinished, c)
        for file in unfinished.parent.iterdir():
            GGUF(file).close()  # what cannot be read is not to take the name


def _call(source: Path, target: Path, c: Any) -> None:
    forget_log()
    params = ffi.new("llama_model_quantize_params *", c)
    code = lib.og_quantize(os.fsencode(source), os.fsencode(target), params)
    raise_pending()
    raise_caught()
    if code:
        raise ModelSaveError(f"{source} could not be quantized", log=recent_log())
