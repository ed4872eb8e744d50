"""``offgrid-llama inspect``: the contents of a GGUF file, and the memory of a context on it. No weights are read."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

import typer

from offgrid_llama.errors import OffgridLlamaError

from . import output
from .exits import explain
from .options import GpuLayers, Json, Verbose, gpu_layers, to_file

if TYPE_CHECKING:
    from offgrid_llama.files.gguf import GGUF, Tensor
    from offgrid_llama.model.memory_plan import MemoryPlan
    from offgrid_llama.native.enums import KVType

__all__ = ["inspect"]

ENTRIES_SHOWN = 3
"""Entries of an array in the output."""
_TEMPLATE = "tokenizer.chat_template"
_ENCODERS = {"vision": "sees with", "audio": "hears with", "gen.audio": "speaks with"}
"""What the encoders of a projector are for."""


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE|NAME", help="A GGUF file, or a name that `models` lists.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template and nothing else.")] = False,
    n_ctx: Annotated[
        int | None,
        typer.Option(min=1, help="Positions of the context whose memory is planned.", show_default="up to 4096"),
    ] = None,
    n_seq_max: Annotated[int, typer.Option(min=1, max=256, help="Sequences of the planned context.")] = 1,
    type_k: Annotated[str, typer.Option(metavar="TYPE", help="Type of its key cache.")] = "f16",
    type_v: Annotated[str, typer.Option(metavar="TYPE", help="Type of its value cache.")] = "f16",
    n_ubatch: Annotated[int, typer.Option(min=1, help="Tokens of its micro-batches.")] = 512,
    n_outputs_max: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of logits that it holds.", show_default="--n-seq-max, as run does"),
    ] = None,
    n_gpu_layers: GpuLayers = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show metadata, tensors, quantization, and the memory of a context."""
    from offgrid_llama.files.gguf import GGUF

    layers = gpu_layers(n_gpu_layers)
    path = to_file(file)
    with GGUF(path) as header:
        if template:
            source = header.get(_TEMPLATE)
            if source is None:
                raise OffgridLlamaError(f"{path} has no chat template")
            output.put(f"{source}\n")
            return
        table = header.tensors()
        facts = _facts(header, table)
        metadata = {key: _value(header, key) for key in header}
    plan = None if facts["encoders"] else _plan(path, {
        "n_gpu_layers": layers, "n_ctx": n_ctx, "n_seq_max": n_seq_max, "n_ubatch": n_ubatch,
        "n_outputs_max": n_seq_max if n_outputs_max is None else n_outputs_max,
        "type_k": cast("KVType", type_k), "type_v": cast("KVType", type_v),
    })  # fmt: skip
    if json:
        listed = [
            {"name": t.name, "type": t.type, "shape": t.shape, "bytes": t.n_bytes, "offset": t.offset} for t in table
        ]
        memory = {} if plan is None else {"memory": _memory_json(plan)}
        output.json_out({**facts, **memory, "metadata": metadata, **({"tensors": listed} if tensors else {})})
        return
    output.out(*_describe(facts), *([] if plan is None else ["", *_memory(plan)]), "", "metadata", *_metadata(metadata))
    if tensors:
        rows = [["  " + t.name, t.type, " x ".join(map(str, t.shape)), f"{t.n_bytes:,}"] for t in table]
        output.out("", "tensors: name, type, shape, bytes", *output.columns(rows, right=(3,)))


def _facts(header: GGUF, table: list[Tensor]) -> dict[str, Any]:
    from offgrid_llama.files.projector_preflight import encoder_types

    types: dict[str, dict[str, int]] = {}
    for tensor_type, count in Counter(tensor.type for tensor in table).most_common():
        n_bytes = sum(tensor.n_bytes for tensor in table if tensor.type == tensor_type)
        types[tensor_type] = {"count": count, "bytes": n_bytes}
    name = header.get("general.name", "")
    split = header.get("split.no"), header.get("split.count")
    return {
        "path": str(header.path.absolute()),
        "file_bytes": header.path.stat().st_size,
        "gguf_version": header.version,
        "architecture": header.architecture,
        "name": name if isinstance(name, str) else "",
        "parameters": sum(tensor.n_elements for tensor in table),
        "context_length": header.hparam("context_length"),
        "layers": header.hparam("block_count"),
        "vocabulary": header.array_length("tokenizer.ggml.tokens") if "tokenizer.ggml.tokens" in header else None,
        "chat_template": _TEMPLATE in header,
        "encoders": encoder_types(header),
        "file_of_split": split if isinstance(split[0], int) and isinstance(split[1], int) and split[1] > 1 else None,
        "quantization": types,
    }


def _describe(facts: dict[str, Any]) -> list[str]:
    split = facts["file_of_split"]
    part = f", file {split[0] + 1} of {split[1]}: the tensors of the others are not counted" if split else ""
    types = (f"{t['count']} {name} ({output.human(t['bytes'])})" for name, t in facts["quantization"].items())
    vocabulary = f"{facts['vocabulary']:,} tokens" if facts["vocabulary"] is not None else "none"
    rows = [
        ("file", f"{facts['path']} ({output.human(facts['file_bytes'])}, GGUF {facts['gguf_version']}{part})"),
        ("architecture", facts["architecture"] or "(none)"),
        ("name", facts["name"] or "(none)"),
        ("parameters", f"{facts['parameters']:,} in {facts['layers']} layers"),
        ("tensors", ", ".join(types) or "none"),
    ]
    if facts["encoders"]:
        rows += [(_ENCODERS[name], kind) for name, kind in facts["encoders"].items()]
    else:
        rows += [
            ("context", f"{facts['context_length']:,} tokens in training"),
            ("vocabulary", vocabulary),
            ("chat template", "yes; --template prints it" if facts["chat_template"] else "no"),
        ]
    return output.columns(rows)


class _PlanOptions(TypedDict):
    """The options of the command that ``memory_plan`` takes, and checks."""

    n_gpu_layers: int | Literal["auto"]
    n_ctx: int | None
    n_seq_max: int
    n_ubatch: int
    n_outputs_max: int
    type_k: KVType
    type_v: KVType


def _plan(path: Path, options: _PlanOptions) -> MemoryPlan | str:
    """Return the plan, or the reason for its failure: a sound file may be no model, such as an adapter."""
    from offgrid_llama.model.memory_plan import memory_plan

    try:
        return memory_plan(path, **options)
    except OffgridLlamaError as error:
        return explain(error)[1]


def _memory(plan: MemoryPlan | str) -> list[str]:
    if isinstance(plan, str):
        return [f"memory: cannot be planned: {plan}"]
    sequences = "1 sequence" if plan.n_seq_max == 1 else f"{plan.n_seq_max} sequences"
    rows = [
        ("  weights", output.mib(plan.weights), "mapped from the file"),
        ("  KV cache", output.mib(plan.kv_cache), f"K {plan.type_k}, V {plan.type_v}"),
        ("  compute", output.mib(plan.compute), "buffers of the largest micro-batch"),
        ("  output", output.mib(plan.output), "logits"),
        ("  total", output.mib(plan.total), ""),
    ]
    return [f"memory for a context of {plan.n_ctx:,} positions, {sequences}", *output.columns(rows, right=(1,))]


def _memory_json(plan: MemoryPlan | str) -> dict[str, Any]:
    if isinstance(plan, str):
        return {"error": plan}
    return {
        "n_ctx": plan.n_ctx, "n_seq_max": plan.n_seq_max, "type_k": plan.type_k, "type_v": plan.type_v,
        "weights": plan.weights, "kv_cache": plan.kv_cache, "compute": plan.compute, "output": plan.output,
        "total": plan.total,
    }  # fmt: skip


def _value(header: GGUF, key: str) -> Any:
    """Return a scalar itself; of an array the type, the length and the first entries."""
    value = header[key]
    if not isinstance(value, list):
        return _plain(value)
    kind = type(value[0]).__name__ if value else "nothing"
    return {"array_of": kind, "length": len(value), "first": [_plain(item) for item in value[:ENTRIES_SHOWN]]}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN


def _metadata(metadata: dict[str, Any]) -> list[str]:
    def text(value: Any) -> str:
        if not isinstance(value, dict):
            return output.one_line(str(value), 100)
        first = ", ".join(output.one_line(repr(item), 40) for item in value["first"])
        more = ", ..." if value["length"] > ENTRIES_SHOWN else ""
        return f"{value['length']:,} x {value['array_of']}: {first}{more}"

    return output.columns([(f"  {key}", text(value)) for key, value in metadata.items()])
