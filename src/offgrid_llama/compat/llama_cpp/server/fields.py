"""The fields of llama-cpp-python's settings: how each is read, its default there, and what becomes of it here.

A field is mapped (``conversion`` says to what), has no effect, or is refused where leaving it out would change answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

__all__ = ["BY_NAME", "FIELDS", "KINDS", "Field"]

DEFAULT_SEED = 2**32 - 1
_TRUE, _FALSE = ("1", "on", "t", "true", "y", "yes"), ("0", "off", "f", "false", "n", "no")


@dataclass(frozen=True)
class Field:
    """One field of the settings, which is a flag, a variable of the environment and a name in the settings file.

    Attributes:
        name: of the flag without its hyphens, and of the variable in any case.
        kind: one of KINDS.
        default: llama-cpp-python's; None where it has none, or one that depends on the machine.
        line: what it does, in one line.
        least: the smallest number that is taken.
        of_server: whether it is the server's and not a model's.
        refused: what to do instead, for a field that may not differ from its default.
        told: what the log says when a field without effect differs from its default; "" says nothing.
    """

    name: str
    kind: str
    default: Any
    line: str
    least: int | None = None
    of_server: bool = False
    refused: str = ""
    told: str = ""


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"it must be a text, not {type(value).__name__}")


def _integer(value: object) -> int:
    with suppress(ValueError):
        if isinstance(value, (str, int)):
            return int(value)
    with suppress(ValueError):
        number = _number(value)
        if number.is_integer():
            return int(number)
    raise ValueError("it must be an integer")


def _number(value: object) -> float:
    if isinstance(value, (str, int, float)):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError("it must be a number")


def _switch(value: object) -> bool:
    if isinstance(value, (str, int)) and str(value).lower().strip() in _TRUE + _FALSE:
        return str(value).lower().strip() in _TRUE
    raise ValueError("it must be true or false")


def _switch_or_integer(value: object) -> bool | int:
    try:
        return _switch(value)
    except ValueError:
        return _integer(value)


def _cache_type(value: object) -> str:
    if value in ("ram", "disk"):
        return _text(value)
    raise ValueError("it must be ram or disk")


def _list(read: Callable[[object], Any]) -> Callable[[object], list[Any]]:
    """Return a reader of lists, which are JSON where they are a text."""

    def read_list(value: object) -> list[Any]:
        value = _parsed(value)
        if not isinstance(value, list):
            raise ValueError("it must be a list: JSON in a variable or a file, words after a flag")
        return [read(each) for each in value]

    return read_list


def _object(value: object) -> dict[str, Any]:
    value = _parsed(value)
    if isinstance(value, dict):
        return value
    raise ValueError("it must be an object in JSON")


def _parsed(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


KINDS: dict[str, Callable[[object], Any]] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "switch": _switch,
    "switch or integer": _switch_or_integer,
    "cache type": _cache_type,
    "numbers": _list(_number),
    "texts": _list(_text),
    "object": _object,
}
"""How a value of each kind is read from a text, or from what JSON has. Each raises ValueError."""

_YARN = (
    "leave it out for the model's own, or set it in the context's params of offgrid_llama.compat.llama_cpp.llama_cpp"
)

FIELDS: tuple[Field, ...] = (
    Field("model", "text", None, "The GGUF file, or a name of the store; see --hf_model_repo_id."),
    Field("model_alias", "text", None, "The name that clients see; without it, the text of --model."),
    Field("n_gpu_layers", "integer", 0, "Layers to keep on the GPU; -1 is as many as fit.", least=-1),
    Field("split_mode", "integer", 1, "How GPUs share the model: 0 none, 1 by layers, 2 by rows, 3 by tensors."),
    Field("main_gpu", "integer", 0, "The GPU for the whole model when it is not split.", least=0),
    Field("tensor_split", "numbers", None, "The share of each GPU, in any unit."),
    Field(
        "vocab_only", "switch", False, "Refused: a model without weights answers nothing.",
        refused="use offgrid_llama.Model(..., vocab_only=True) in Python, or `offgrid-llama tokenize`",
    ),
    Field("use_mmap", "switch", None, "Map the file into memory; without it, where the device can."),
    Field("use_mlock", "switch", None, "Lock the weights in memory; without it, they are not."),
    Field("kv_overrides", "texts", None, "Metadata in place of the file's: KEY=TYPE:VALUE, of int, float, bool or str."),
    Field("rpc_servers", "text", None, "RPC servers to use as the only GPUs: HOST:PORT, with commas between them."),
    Field("seed", "integer", DEFAULT_SEED, "The seed of requests that have none; -1 is a random one for each."),
    Field("n_ctx", "integer", 2048, "Positions of a request, prompt and answer; 0 is up to 4,096.", least=0),
    Field("n_batch", "integer", 512, "The most tokens of a step.", least=1),
    Field("n_ubatch", "integer", 512, "The same: the smaller one of both counts.", least=1),
    Field("n_threads", "integer", None, "CPU threads for generation; without it, as many as are free.", least=1),
    Field("n_threads_batch", "integer", None, "CPU threads for prompts; -1 is all, 0 is as many as --n_threads.", least=0),
    Field("rope_scaling_type", "integer", -1, "RoPE scaling: -1 the model's, 0 none, 1 linear, 2 YaRN, 3 LongRoPE."),
    Field("rope_freq_base", "number", 0.0, "RoPE's base frequency; 0 is the model's."),
    Field("rope_freq_scale", "number", 0.0, "RoPE's frequency scale; 0 is the model's."),
    Field(
        "yarn_ext_factor", "number", -1.0, "Refused unless it is the default: the model's own is used.",
        refused=_YARN,
    ),
    Field(
        "yarn_attn_factor", "number", 1.0, "Refused unless it is the default: the model's own is used.",
        refused=_YARN,
    ),
    Field(
        "yarn_beta_fast", "number", 32.0, "Refused unless it is the default: the model's own is used.",
        refused=_YARN,
    ),
    Field(
        "yarn_beta_slow", "number", 1.0, "Refused unless it is the default: the model's own is used.",
        refused=_YARN,
    ),
    Field(
        "yarn_orig_ctx", "integer", 0, "Refused unless it is the default: a key of the GGUF sets it.",
        refused="set the key ARCHITECTURE.rope.scaling.original_context_length with --kv_overrides",
    ),
    Field("mul_mat_q", "switch", True, "No effect: llama.cpp chooses its kernels."),
    Field("logits_all", "switch", True, "No effect: each request can have logprobs."),
    Field("embedding", "switch", False, "No effect: /v1/embeddings is always there."),
    Field("offload_kqv", "switch", True, "Keep the KV cache on the GPU, beside the layers there."),
    Field("flash_attn", "switch", False, "Use flash attention, or not; without it, where the device can."),
    Field("last_n_tokens_size", "integer", 64, "How many of the last tokens count as repeated.", least=0),
    Field("lora_base", "text", None, "No effect, in llama-cpp-python neither: llama.cpp no longer has it."),
    Field("lora_path", "text", None, "The file of a LoRA adapter to use."),
    Field("numa", "switch or integer", False, "No effect: the system places the memory."),
    Field("chat_format", "text", None, "chatml, hf-tokenizer-config, or that of a model that sees; else its own template."),
    Field(
        "chat_template_kwargs", "object", None, "Refused: requests set it.",
        refused="set chat_template_kwargs in the requests, or write the values into a template",
    ),
    Field("clip_model_path", "text", None, "The model's projector (an mmproj): a file, or one of the repository."),
    Field("cache", "switch", False, "Whether --cache_size counts; prompts are always cached."),
    Field("cache_type", "cache type", "ram", "Where --cache puts what it holds: ram, or disk, in .cache/llama_cache."),
    Field("cache_size", "integer", 2**31, "The most bytes of that cache."),
    Field("hf_tokenizer_config_path", "text", None, "A tokenizer_config.json with a template, for its --chat_format."),
    Field(
        "hf_pretrained_model_name_or_path", "text", None, "Refused: the tokenizer is the one in the GGUF.",
        refused="leave it out for the tokenizer of the GGUF, and convert the model again if that one is wrong",
    ),
    Field("hf_model_repo_id", "text", None, "ORG/REPO of Hugging Face, of which --model is a file, or a pattern."),
    Field("draft_model", "text", None, "No effect: prompt lookup is used where it pays."),
    Field("draft_model_num_pred_tokens", "integer", 10, "No effect: as many as pay are guessed."),
    Field("type_k", "integer", None, "The type of the cache's keys: 0 f32, 1 f16, 2 q4_0, 8 q8_0, 30 bf16 ..."),
    Field("type_v", "integer", None, "The type of its values."),
    Field("verbose", "switch", True, "No effect: the log tells of requests and of what goes wrong."),
    Field("host", "text", "localhost", "The address to listen on.", of_server=True),
    Field("port", "integer", 8000, "The port to listen on; 0 is any free one.", of_server=True),
    Field(
        "ssl_keyfile", "text", None, "Refused: this server speaks plain HTTP.", of_server=True,
        refused="leave it out, and let a proxy speak TLS, such as that of docs/deploy/nginx.conf",
    ),
    Field(
        "ssl_certfile", "text", None, "Refused: this server speaks plain HTTP.", of_server=True,
        refused="leave it out, and let a proxy speak TLS, such as that of docs/deploy/nginx.conf",
    ),
    Field("api_key", "text", None, "The key that each request must show; at least 8 characters.", of_server=True),
    Field("interrupt_requests", "switch", True, "No effect: no request interrupts another one.", of_server=True),
    Field(
        "disable_ping_events", "switch", False, "No effect: while nothing comes, a stream has comments.", of_server=True,
        told="a stream has a comment every 15 seconds while its first token does not come",
    ),
    Field(
        "root_path", "text", "", "No effect: the proxy must take its prefix away.", of_server=True,
        told="paths begin at /v1; let the proxy take the prefix away",
    ),
)  # fmt: skip
BY_NAME = {field.name: field for field in FIELDS}
