"""quantize: a model's weights in another type, in a new file (``llama_model_quantize``).

llama.cpp is asked for its plan first; a plan on which it would abort is refused (``quantize_plan``). Then it writes the
file, under another name until the file is complete.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offgrid_llama._capi import lib
from offgrid_llama.native.backend import start
from offgrid_llama.native.callbacks import listening
from offgrid_llama.native.check import callback, number

from .atomic import replacing, unfinished_files
from .gguf import GGUF, Tensor
from .imatrix import importance_of
from .model_files import opened_all, split_path
from .overrides import Override, checked
from .quantize_params import FTYPES, TENSOR_TYPES, NativeParams, QuantizeParams
from .quantize_plan import PlannedTensor, check_plan, check_tensors, check_weights, has_layers_elsewhere, read_plan

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["FTYPES", "TENSOR_TYPES", "Quantized", "quantize"]

_ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class Quantized:
    """The result of ``quantize``, or of its dry run.

    Attributes:
        n_bytes_source, n_bytes: of all tensors, before and after.
        types: each tensor's new type, by its name in the new file.
    """

    n_bytes_source: int
    n_bytes: int
    types: dict[str, str]


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
    """Quantize a model file (``llama_model_quantize``).

    The new file gets its name when it is complete; until then, and after a failure, a file of that name stays as it was.

    Args:
        src: a GGUF file of float weights; of a split model the first one.
        dst: the new file; not ``src``. None with ``dry_run``.
        ftype: one of ``FTYPES``, upper or lower case, such as "Q4_K_M": the mixture of types for the tensors.
        n_threads: the default is the number of physical cores.
        output_tensor_type, token_embedding_type: a type for ``output.weight`` and for the table of embeddings, such as
            "q8_0"; the default is the mixture's.
        allow_requantize: quantize tensors that are quantized already; more is lost than from the original weights.
        quantize_output_tensor: quantize ``output.weight``.
        only_copy: change no tensor; ``ftype`` is ignored. A split model becomes one file.
        pure: one type for all tensors in place of a mixture.
        keep_split: write as many splits as ``src`` has, named after ``dst``.
        dry_run: write nothing, and return the result that would come out.
        imatrix: an importance matrix, which the types of less than 3 bits need: the GGUF file that llama.cpp's imatrix
            tool writes, or float32 by the tensor's name, of shape (columns,) or (experts, columns).
        kv_overrides: metadata to change, as for Model; an int must not be negative.
        tensor_types: other types for some tensors: from a regular expression (ECMAScript, searched for in the name; the
            first that matches counts) to a type. Patterns must come from the program, never from a client.
        prune_layers: layers to leave out, numbered from 0.
        max_buf_size: bytes of one tensor in memory at once; 0 is 8 GiB.
        progress: called with the number of finished tensors and of all, on this thread. An exception in it, like Ctrl-C,
            ends the work after the current tensor.

    Returns:
        The sizes, and each tensor's type.

    Raises:
        FileNotFoundError: there is no ``src``, or no folder for ``dst``.
        GGUFError: a file is no GGUF, or is damaged.
        ValueError, TypeError: an argument is out of its range, or this model cannot be quantized as it asks.
        ModelSaveError: llama.cpp failed; the error has its log.
    """
    start()
    if (dst is None) is not dry_run:
        raise ValueError("dst must be a path, or None with dry_run=True")
    if progress is not None:
        callback("progress", progress)
    params = QuantizeParams(
        ftype=ftype, n_threads=n_threads, output_tensor_type=output_tensor_type, token_embedding_type=token_embedding_type,
        allow_requantize=allow_requantize, quantize_output_tensor=quantize_output_tensor, only_copy=only_copy, pure=pure,
        keep_split=keep_split, tensor_types=tensor_types or {}, max_buf_size=max_buf_size,
    )  # fmt: skip
    source = _Source.read(Path(src), params, kv_overrides, prune_layers)
    importance, about_importance = importance_of(imatrix)
    native = NativeParams(
        params, keep_split=source.keep_split, metadata={**source.metadata, **about_importance},
        importance=None if imatrix is None else importance, pruned_layers=source.pruned_layers,
    )  # fmt: skip
    plan = read_plan(source.path, native, source.kept_layers)
    if dst is not None:
        check_plan(plan, params, importance)
        with opened_all([source.path]) as headers:
            check_weights(headers, plan)
            sources = [header.path for header in headers]
        _write(native, sources, Path(dst), keep_split=source.keep_split, log_line=_progress_reader(progress, len(plan)))
    return _result(plan)


def _result(plan: Sequence[PlannedTensor]) -> Quantized:
    return Quantized(
        n_bytes_source=sum(tensor.n_bytes(tensor.source_type) for tensor in plan),
        n_bytes=sum(tensor.n_bytes(tensor.type) for tensor in plan),
        types={tensor.name: tensor.type for tensor in plan},
    )


@dataclass(frozen=True)
class _Source:
    """A model to quantize, read from its headers and checked.

    Attributes:
        path: its first file.
        metadata: values to write into the new file in place of the source's.
        keep_split: whether the new model has splits.
        kept_layers, pruned_layers: the layers that stay, and those that are left out.
    """

    path: Path
    metadata: Mapping[str, Override]
    keep_split: bool
    kept_layers: Sequence[int]
    pruned_layers: Sequence[int]

    @classmethod
    def read(
        cls,
        path: Path,
        params: QuantizeParams,
        kv_overrides: Mapping[str, Override] | None,
        prune_layers: Iterable[int],
    ) -> _Source:
        """Read the headers of a model's files. Raises as ``quantize`` does."""
        with opened_all([path]) as headers:
            metadata = _metadata(headers, kv_overrides)
            tensors = [tensor for header in headers for tensor in header.tensors()]
            check_tensors(path, tensors, params.types_of_tables())
            keep_split = params.keep_split and len(headers) > 1
            if keep_split and any(not header.n_tensors for header in headers[1:]):
                raise ValueError(f"keep_split must be False: a later split of {path} has no tensors")
            n_layer = headers[0].hparam("block_count")
            pruned = sorted({number("prune_layers: a layer", layer, 0, n_layer - 1) for layer in prune_layers})
            kept = [layer for layer in range(n_layer) if layer not in pruned]
            if pruned:
                _check_pruning(headers[0], tensors, keep_split=keep_split, any_left=bool(kept))
        return cls(path, metadata, keep_split, kept, pruned)


def _metadata(headers: Sequence[GGUF], kv_overrides: Mapping[str, Override] | None) -> dict[str, Override]:
    """Return the values that the new file has in place of the source's, and check the source with them."""
    overrides = checked(kv_overrides, headers[0])
    for header in headers:
        header.check(overrides)
    for key, value in overrides.items():
        if isinstance(value, int) and value < 0:
            raise ValueError(f"kv_overrides[{key!r}] must not be negative, but is {value}")
    if headers[0].get(_ALIGNMENT, lib.GGUF_DEFAULT_ALIGNMENT) != lib.GGUF_DEFAULT_ALIGNMENT:
        overrides[_ALIGNMENT] = lib.GGUF_DEFAULT_ALIGNMENT  # llama.cpp copies the number, but always aligns to 32
    return overrides


def _check_pruning(header: GGUF, tensors: Iterable[Tensor], *, keep_split: bool, any_left: bool) -> None:
    """Refuse to leave out layers where llama.cpp would not move all that belongs to the others."""
    n_layer = header.hparam("block_count")
    per_layer = [key for key in header if header.array_length(key) == n_layer and not key.startswith("tokenizer.")]
    why = ""
    if per_layer:
        why = f"{per_layer[0]} has a value for each"
    elif keep_split:
        why = "keep_split=True"
    elif not any_left:
        why = "none is left"
    if why:
        raise ValueError(f"prune_layers: no layers of {header.path} can be left out, as {why}")
    if has_layers_elsewhere(tensors):
        raise ValueError(f"prune_layers: {header.path} has more than one row of layers")


def _progress_reader(progress: Callable[[int, int], object] | None, total: int) -> Callable[[str], None]:
    """Return a listener to the log that calls ``progress`` for each tensor."""

    def read(line: str) -> None:
        match = re.match(r"\[ *(\d+)/", line)
        if match and progress is not None:
            progress(int(match[1]), total)

    return read


def _write(
    native: NativeParams, sources: Sequence[Path], dst: Path, *, keep_split: bool, log_line: Callable[[str], None]
) -> None:
    """Write the new file, or the new splits. Raises ValueError where one of them is a source."""
    prefix = dst.with_name(dst.name.removesuffix(".gguf"))
    count = len(sources)
    for target in [split_path(prefix, index, count) for index in range(count)] if keep_split else [dst]:
        if target.exists() and any(os.path.samefile(source, target) for source in sources):
            raise ValueError(f"dst must not be src: {target}")
    with replacing(dst) as unfinished:
        with listening(log_line):
            native.run(sources[0], unfinished.with_name(prefix.name) if keep_split else unfinished)
        for file in unfinished_files(unfinished.parent):
            GGUF(file).close()  # a file that cannot be read must not take the name
