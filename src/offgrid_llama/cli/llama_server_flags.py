"""The flags of llama-server that this server has: how each is read, and what it is called here.

A flag that is not in the table is refused by name, so that nothing is taken for granted that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .exits import UsageError

__all__ = ["FLAGS", "Flag", "read"]

_TRUE, _FALSE = ("on", "enabled", "true", "1", "yes"), ("off", "disabled", "false", "0", "no")


@dataclass(frozen=True)
class Flag:
    """A flag, or several that set the same.

    Attributes:
        names: with their hyphens.
        to: what it sets; "" is accepted without effect.
        read: from its text to its value; None for a flag without a text, which sets ``value``.
        value: that a flag without a text sets.
        variable: of the environment, without ``LLAMA_ARG_``; "" has none.
        repeats: whether each one adds to a list.
    """

    names: tuple[str, ...]
    to: str
    read: Callable[[str], Any] | None = None
    value: Any = True
    variable: str = ""
    repeats: bool = False


def _switch(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise ValueError("must be on or off")


def _flash(text: str) -> str:
    return "auto" if text.lower() == "auto" else "enabled" if _switch(text) else "disabled"


def _layers(text: str) -> int | str:
    if text in ("auto", "all"):
        return "auto" if text == "auto" else 10_000
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _keys(text: str) -> list[str]:
    keys = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines()]
    return [key for key in keys if key and not key.startswith("#")]


def _scaled(text: str) -> list[tuple[str, float]]:
    """Return adapters with their scales: ``FILE:SCALE,...``."""
    found = []
    for each in _names(text):
        file, _, scale = each.rpartition(":")
        if not file:
            raise ValueError("must be FILE:SCALE")
        found.append((file, float(scale)))
    return found


def _plain(text: str) -> list[tuple[str, float]]:
    return [(file, 1.0) for file in _names(text)]


def _at_least_zero(text: str) -> float:
    return max(float(text), 0.0)


def _on(names: Sequence[str], to: str, variable: str = "") -> list[Flag]:
    """Return a switch and its opposite, ``--no-...``."""
    long = [name for name in names if name.startswith("--")]
    opposites = [f"--no-{name[2:]}" for name in long]
    if any(len(name.lstrip("-")) <= 5 and not name.startswith("--") for name in names):
        opposites += [f"-no{name}"[:3] + name[1:] for name in names if not name.startswith("--")]
    return [Flag(tuple(names), to, None, True, variable), Flag(tuple(opposites), to, None, False)]


_SAMPLING: tuple[Flag, ...] = (
    Flag(("--temp", "--temperature"), "sampling.temperature", float, variable="TEMPERATURE"),
    Flag(("--top-k",), "sampling.top_k", lambda text: max(int(text), 0), variable="TOP_K"),
    Flag(("--top-p",), "sampling.top_p", float, variable="TOP_P"),
    Flag(("--min-p",), "sampling.min_p", float, variable="MIN_P"),
    Flag(("--top-nsigma", "--top-n-sigma"), "sampling.top_n_sigma", _at_least_zero),
    Flag(("--typical", "--typical-p"), "sampling.typical_p", float),
    Flag(("--xtc-probability",), "sampling.xtc_probability", float),
    Flag(("--xtc-threshold",), "sampling.xtc_threshold", float),
    Flag(("--repeat-last-n",), "sampling.repeat_last_n", lambda text: 2**20 if text == "-1" else int(text)),
    Flag(("--repeat-penalty",), "sampling.repeat_penalty", float),
    Flag(("--presence-penalty",), "sampling.presence_penalty", float),
    Flag(("--frequency-penalty",), "sampling.frequency_penalty", float),
    Flag(("--dry-multiplier",), "sampling.dry_multiplier", float),
    Flag(("--dry-base",), "sampling.dry_base", float),
    Flag(("--dry-allowed-length",), "sampling.dry_allowed_length", int),
    Flag(("--dry-penalty-last-n",), "sampling.dry_penalty_last_n", lambda text: 2**20 if text == "-1" else int(text)),
    Flag(("--dry-sequence-breaker",), "sampling.dry_sequence_breakers", lambda text: [text], repeats=True),
    Flag(("--dynatemp-range",), "sampling.dynatemp_range", float),
    Flag(("--dynatemp-exp",), "sampling.dynatemp_exponent", float),
    Flag(("--mirostat",), "sampling.mirostat", int),
    Flag(("--mirostat-lr",), "sampling.mirostat_eta", float),
    Flag(("--mirostat-ent",), "sampling.mirostat_tau", float),
    Flag(("--adaptive-target",), "adaptive_target", float),
    Flag(("--adaptive-decay",), "sampling.adaptive_decay", float),
    Flag(("--samplers",), "samplers", str),
    Flag(("--sampling-seq", "--sampler-seq"), "samplers", str),
    Flag(("-s", "--seed"), "seed", int),
)

_MODEL: tuple[Flag, ...] = (
    Flag(("-m", "--model"), "model", str, variable="MODEL"),
    Flag(("-hf", "-hfr", "--hf-repo"), "hf_repo", str, variable="HF_REPO"),
    Flag(("-hff", "--hf-file"), "hf_file", str, variable="HF_FILE"),
    Flag(("-a", "--alias"), "aliases", _names, variable="ALIAS"),
    Flag(("--tags",), "server.tags", lambda text: tuple(_names(text)), variable="TAGS"),
    Flag(("-c", "--ctx-size"), "n_ctx", int, variable="CTX_SIZE"),
    Flag(("-np", "--parallel"), "n_parallel", int, variable="N_PARALLEL"),
    Flag(("-ngl", "--gpu-layers", "--n-gpu-layers"), "n_gpu_layers", _layers, variable="N_GPU_LAYERS"),
    Flag(("-t", "--threads"), "n_threads", int, variable="THREADS"),
    Flag(("-tb", "--threads-batch"), "engine.n_threads_batch", int),
    Flag(("-b", "--batch-size"), "batch", int, variable="BATCH"),
    Flag(("-ub", "--ubatch-size"), "ubatch", int, variable="UBATCH"),
    Flag(("-fa", "--flash-attn"), "engine.flash_attn_type", _flash, variable="FLASH_ATTN"),
    Flag(("-ctk", "--cache-type-k"), "engine.type_k", str, variable="CACHE_TYPE_K"),
    Flag(("-ctv", "--cache-type-v"), "engine.type_v", str, variable="CACHE_TYPE_V"),
    Flag(("-cram", "--cache-ram"), "cache_ram", int, variable="CACHE_RAM"),
    *_on(("-kvu", "--kv-unified"), "engine.kv_unified", "KV_UNIFIED"),
    *_on(("--swa-full",), "engine.swa_full", "SWA_FULL"),
    *_on(("-kvo", "--kv-offload"), "engine.offload_kqv", "KV_OFFLOAD"),
    *_on(("--mmap",), "mmap", "MMAP"),
    Flag(("--mlock",), "mlock", variable="MLOCK"),
    *_on(("--check-tensors",), "load.check_tensors"),
    Flag(("--lora",), "loras", _plain, repeats=True),
    Flag(("--lora-scaled",), "loras", _scaled, repeats=True),
    Flag(("--lora-init-without-apply",), "lora_init_without_apply"),
    Flag(("-md", "--model-draft", "--spec-draft-model"), "draft", str, variable="MODEL_DRAFT"),
    Flag(("-mm", "--mmproj"), "projector", str, variable="MMPROJ"),
    Flag(("--image-min-tokens",), "image_min_tokens", int, variable="IMAGE_MIN_TOKENS"),
    Flag(("--image-max-tokens",), "image_max_tokens", int, variable="IMAGE_MAX_TOKENS"),
    Flag(("--draft", "--draft-n", "--draft-max", "--spec-draft-n-max"), "", int),
    Flag(("--draft-min", "--draft-n-min", "--spec-draft-n-min"), "", int),
    Flag(("--draft-p-min", "--spec-draft-p-min"), "", float),
    Flag(("--spec-type",), "spec_type", str),
    Flag(("--chat-template",), "chat_template", str, variable="CHAT_TEMPLATE"),
    Flag(("--chat-template-file",), "chat_template_file", str, variable="CHAT_TEMPLATE_FILE"),
    *_on(("--jinja",), "", "JINJA"),
)

_SERVER: tuple[Flag, ...] = (
    Flag(("--host",), "host", str, variable="HOST"),
    Flag(("--port",), "port", int, variable="PORT"),
    Flag(("--api-key",), "api_keys", _names, variable="", repeats=True),
    Flag(("--api-key-file",), "api_keys", _keys, repeats=True),
    Flag(("-to", "--timeout"), "timeout", float, variable="TIMEOUT"),
    Flag(("--sleep-idle-seconds",), "idle_seconds", float),
    Flag(("--cors-origins",), "cors_origins", _names, variable="CORS_ORIGINS"),
    Flag(("-n", "--predict", "--n-predict"), "server.n_predict", int, variable="N_PREDICT"),
    Flag(("--keep",), "server.n_keep", int),
    Flag(("--ignore-eos",), "server.ignore_eos"),
    *_on(("--context-shift",), "server.context_shift", "CONTEXT_SHIFT"),
    *_on(("--cache-prompt",), "server.cache_prompt", "CACHE_PROMPT"),
    *_on(("--slots",), "server.slots", "ENDPOINT_SLOTS"),
    Flag(("--metrics",), "server.metrics", variable="ENDPOINT_METRICS"),
    Flag(("--props",), "server.props", variable="ENDPOINT_PROPS"),
    Flag(("--slot-save-path",), "server.slot_save_path", str),
    Flag(("--embedding", "--embeddings"), "server.embeddings", variable="EMBEDDINGS"),
    Flag(("--rerank", "--reranking"), "server.reranking", variable="RERANKING"),
    Flag(("--pooling",), "server.pooling", str, variable="POOLING"),
    Flag(("--reasoning-format",), "server.reasoning_format", str, variable="THINK"),
    Flag(("--reasoning-budget",), "server.reasoning_budget", int, variable="THINK_BUDGET"),
    Flag(("-rea", "--reasoning"), "server.reasoning", str, variable="REASONING"),
    *_on(("--prefill-assistant",), "server.prefill_assistant", "PREFILL_ASSISTANT"),
    Flag(("-v", "--verbose", "--log-verbose"), "server.verbose"),
    *_on(("--ui", "--webui"), "page", "UI"),
)

_WITHOUT_EFFECT: tuple[Flag, ...] = (
    *_on(("-cb", "--cont-batching"), "", "CONT_BATCHING"),
    *_on(("--warmup",), ""),
    Flag(("--offline",), "offline", variable="OFFLINE"),
    Flag(("--log-disable",), "log_disable"),
    *_on(("--log-prefix",), ""),
    *_on(("--log-timestamps",), ""),
    Flag(("--log-colors",), "", str),
    Flag(("-lv", "--verbosity", "--log-verbosity"), "", int),
    Flag(("--threads-http",), "", int, variable="THREADS_HTTP"),
    *_on(("--perf",), ""),
    *_on(("--cache-idle-slots",), ""),
    Flag(("--backend_sampling", "--backend-sampling"), ""),
    Flag(("--defrag-thold", "-dt"), "", str),
    Flag(("--cache-reuse",), "", int),
)

FLAGS: tuple[Flag, ...] = (*_SAMPLING, *_MODEL, *_SERVER, *_WITHOUT_EFFECT)
_BY_NAME = {name: flag for flag in FLAGS for name in flag.names}


def read(arguments: Iterable[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what a command line of llama-server sets, and the environment where it does not.

    Raises UsageError for a flag that is not known, and for a text that is none of its values.
    """
    found = _read_environment(environment)
    given: dict[str, Any] = {}
    rest = iter(arguments)
    for word in rest:
        name, is_joined, text = word.partition("=") if word.startswith("--") else (word, "", "")
        flag = _BY_NAME.get(name) or _BY_NAME.get(name.replace("_", "-"))
        if flag is None:
            raise UsageError(f"{name}: this server has no such flag of llama-server; see docs/llama_server.md")
        if flag.read is None:
            _set(given, flag, flag.value)
            continue
        if not is_joined:
            text = next(rest, "")
        _set(given, flag, _value(name, flag.read, text))
    return {**found, **given}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for flag in FLAGS:
        name = f"LLAMA_ARG_{flag.variable}"
        if flag.variable and name in environment:
            if flag.read is not None:
                _set(found, flag, _value(name, flag.read, environment[name]))
            elif _value(name, _switch, environment[name]):
                _set(found, flag, flag.value)
            else:
                _set(found, flag, not flag.value)
    if environment.get("LLAMA_API_KEY"):
        found["api_keys"] = _names(environment["LLAMA_API_KEY"])
    return found


def _value(name: str, read_text: Callable[[str], Any], text: str) -> Any:
    try:
        return read_text(text)
    except (ValueError, OSError) as error:
        raise UsageError(f"{name}: {text!r} cannot be used: {error}") from error


def _set(values: dict[str, Any], flag: Flag, value: Any) -> None:
    if flag.repeats:
        values[flag.to] = [*values.get(flag.to, ()), *value]
    elif flag.to:
        values[flag.to] = value
