"""llama-cpp-python's settings as the server's own Settings."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offgrid_llama import store
from offgrid_llama.chat.template.choice import BUILT_IN
from offgrid_llama.compat.llama_cpp.jinja_formats import jinja_format
from offgrid_llama.compat.llama_cpp.text_formats import TEXT_FORMATS
from offgrid_llama.server import ModelSettings, Settings, SettingsError

from .fields import BY_NAME, DEFAULT_SEED, FIELDS
from .pictures import PICTURE_FORMATS, picture_template
from .sources import Given

__all__ = ["CHAT_FORMATS", "KV_TYPES", "notes_of", "settings_of"]

N_PARALLEL = 8
"""Requests of a model that run at a time, at most."""
MAX_POSITIONS = 2**15
"""Positions of a model up to which each running request has ``n_ctx`` of its own: as many as 8 requests have in `serve`."""
REPEAT_PENALTY = 1.1
"""Of requests that set none: the one default of sampling in which the two servers differ."""
DISK_CACHE = Path(".cache") / "llama_cache"
"""The folder of llama-cpp-python's disk cache, in the working folder."""
DISK_CACHE_MEMORY_BYTES = 2**28
"""Host memory for prefixes on their way to the disk."""

SPLIT_MODES = ("none", "layer", "row", "tensor")
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
KV_TYPES = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 20: "iq4_nl", 30: "bf16"}
"""The numbers of ggml's types that a KV cache can have."""
CHAT_FORMATS = (
    "chatml-function-calling", "functionary", "functionary-v1", "functionary-v2", "hf-autotokenizer",
)  # fmt: skip
"""Chat formats that llama-cpp-python has and this server does not: its workers take templates, and no functions."""

_OVERRIDE = re.compile(r"([^=]+)=(bool|int|float|str):(.*)", re.DOTALL)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:/-]")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_OF_NAME = 128


def settings_of(given: Given) -> Settings:
    """Return the settings of the server. The first model's file is fetched if its name is one of the store's.

    Raises SettingsError for what this server cannot do, and for settings that are not possible; StoreError for a model that
    cannot be had, and OSError for a file that cannot be read.
    """
    for values in (given.server, *given.models):
        _refuse(values)
    models = tuple(_model(values, is_first=i == 0) for i, values in enumerate(given.models))
    host, key = _get(given.server, "host"), _get(given.server, "api_key")
    if not host:
        raise SettingsError("--host is empty; 0.0.0.0 is every address of this machine")
    is_open = host not in _LOOPBACK
    return Settings(
        host=host, port=_get(given.server, "port"), models=models, api_keys=() if key is None else (key,), insecure=is_open,
        allowed_hosts=("*",) if is_open or key is not None else (), cors_origins=() if key is None else ("*",),
        any_model=True, ignore_unknown=True,
    )  # fmt: skip


def notes_of(given: Given) -> Iterator[str]:
    """Yield what the log says of settings that have no effect here, or another one."""
    if given.ignored:
        yield f"beside a settings file these flags have no effect: {', '.join(given.ignored)}"
    for values in (given.server, *given.models):
        for field in FIELDS:
            if field.told and _get(values, field.name) != field.default:
                yield f"{field.name} has no effect: {field.told}"
        if values.get("n_ctx") == 0:
            yield "n_ctx 0 gives each request up to 4,096 positions; set n_ctx for more"


def _get(values: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field, or its default."""
    return values.get(name, BY_NAME[name].default)


def _refuse(values: Mapping[str, Any]) -> None:
    """Raise SettingsError for a field whose effect this server does not have."""
    for name, value in values.items():
        if BY_NAME[name].refused and value != BY_NAME[name].default:
            raise SettingsError(f"--{name}: this server does not have it: {BY_NAME[name].refused}")


def _model(values: Mapping[str, Any], *, is_first: bool) -> ModelSettings:
    model = _source(values)
    if is_first:
        store.resolve(model)
    name = _NOT_IN_NAMES.sub("-", values.get("model_alias") or values["model"])[-_MOST_OF_NAME:]
    n_layers, lora, n_ctx = _get(values, "n_gpu_layers"), values.get("lora_path"), _get(values, "n_ctx")
    if lora is not None and not Path(lora).is_file():
        raise SettingsError(f"--lora_path: there is no file {lora}")
    n_parallel, is_shared = _places(n_ctx)
    template, stop = _format(values)
    return ModelSettings(
        name, model=model, template=template, stop=stop, projector=_projector(values), n_parallel=n_parallel,
        n_ctx=(n_ctx if is_shared else n_ctx * n_parallel) or None, n_threads=values.get("n_threads"),
        n_gpu_layers=None if n_layers == -1 else n_layers, loras={} if lora is None else {lora: 1.0},
        sampling=_sampling(values), engine={**_engine(values, n_parallel), "kv_unified": is_shared}, load=_load(values),
        preload=is_first,
    )  # fmt: skip


def _places(n_ctx: int) -> tuple[int, bool]:
    """Return how many requests run at a time, and whether they share ``n_ctx`` positions, which saves memory.

    Those that share them wait for each other unless they set ``max_tokens``.
    """
    n = min(N_PARALLEL, MAX_POSITIONS // n_ctx) if n_ctx else N_PARALLEL
    return (n, False) if n > 1 else (N_PARALLEL, True)


def _source(values: Mapping[str, Any]) -> str:
    """Return the path of a model's file, or its name in the store. Raises SettingsError where there is neither."""
    model: str = values["model"]
    repository = values.get("hf_model_repo_id")
    if repository is not None:
        return _of_repository(repository, model)
    if Path(model).is_file():
        return model
    if not model.startswith("hf:") and ("/" in model or model.endswith(".gguf")):
        raise SettingsError(f"--model: there is no file {model}")
    return store.entry(model).name


def _of_repository(repository: str, pattern: str) -> str:
    """Return the store's name of a repository's file. A pattern must fit one of those in the cache.

    The store fetches files by their names, and does not ask for lists of them.
    """
    if not any(mark in pattern for mark in "*?["):
        return store.entry(f"hf:{repository}/{pattern}").name
    prefix = f"hf:{repository}/"
    found = [name for name in store.cached() if name.startswith(prefix)]
    fitting = [name for name in found if fnmatch.fnmatch(name.removeprefix(prefix), pattern)]
    if len(fitting) == 1:
        return fitting[0]
    cached = ", ".join(name.removeprefix(prefix) for name in found) or "none"
    raise SettingsError(
        f"--model {pattern}: {len(fitting)} cached files of {repository} fit; give the whole name of one, which is then "
        f"downloaded if it is not cached (cached are {cached})"
    )


def _format(values: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """Return the chat template to use instead of the model's, and the texts that end an answer with it."""
    name = values.get("chat_format")
    if name is None or name == "chat_template.default":
        return None, ()
    if name in BUILT_IN:
        return BUILT_IN[name], ()
    if name in TEXT_FORMATS:
        return jinja_format(name)
    if name in PICTURE_FORMATS:
        if values.get("clip_model_path") is None:
            raise SettingsError(f"--chat_format {name} needs --clip_model_path, the model's projector")
        return picture_template(name), ()
    if name == "hf-tokenizer-config":
        return _template_of_tokenizer(values.get("hf_tokenizer_config_path")), ()
    why = (
        "needs Python code in the worker, which is not here"
        if name in CHAT_FORMATS
        else "is none of llama-cpp-python's"
    )
    raise SettingsError(
        f"--chat_format {name} {why}: leave it out, and the model's own template is used; "
        f"{', '.join((*BUILT_IN, *TEXT_FORMATS, 'hf-tokenizer-config', *PICTURE_FORMATS))} are here"
    )


def _projector(values: Mapping[str, Any]) -> str | None:
    """Return the path of the file that sees for a model, or its name in the store."""
    path: str | None = values.get("clip_model_path")
    repository = values.get("hf_model_repo_id")
    if path is None or Path(path).is_file():
        return path
    if repository is None:
        raise SettingsError(f"--clip_model_path: there is no file {path}")
    return _of_repository(repository, path)


def _template_of_tokenizer(path: str | None) -> str:
    """Return the chat template in a tokenizer_config.json: its only one, or that with the name "default"."""
    if path is None:
        raise SettingsError("--chat_format hf-tokenizer-config needs --hf_tokenizer_config_path")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"--hf_tokenizer_config_path: {path} is no JSON: {error}") from error
    found = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if not isinstance(found, str) or "{" not in found:
        raise SettingsError(f"--hf_tokenizer_config_path: {path} has no chat_template")
    return found


def _sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what requests use that do not say. A seed of 0 is none, as in llama-cpp-python."""
    sampling = {"repeat_penalty": REPEAT_PENALTY, "repeat_last_n": _get(values, "last_n_tokens_size")}
    seed = _get(values, "seed") % 2**32
    return sampling if seed in (0, DEFAULT_SEED) else {**sampling, "seed": seed}


def _engine(values: Mapping[str, Any], n_parallel: int) -> dict[str, Any]:
    """Return the arguments of Engine. Each token of a stream has its own event, as in llama-cpp-python."""
    n_batch = max(min(_get(values, "n_batch"), _get(values, "n_ubatch")), n_parallel + 1)
    engine = {"n_batch": n_batch, "stream_interval": 0.0, **_cache(values)}
    for name in ("rope_freq_base", "rope_freq_scale", "n_threads_batch"):
        if values.get(name):
            engine[name] = values[name]
    if "offload_kqv" in values:
        engine["offload_kqv"] = values["offload_kqv"]
    if "flash_attn" in values:
        engine["flash_attn_type"] = "enabled" if values["flash_attn"] else "disabled"
    if _get(values, "rope_scaling_type") != -1:
        engine["rope_scaling_type"] = _named("rope_scaling_type", values, dict(enumerate(ROPE_SCALINGS)))
    for name in ("type_k", "type_v"):
        if name in values:
            engine[name] = _named(name, values, KV_TYPES)
    return engine


def _cache(values: Mapping[str, Any]) -> dict[str, Any]:
    if not values.get("cache"):
        return {}
    size = _get(values, "cache_size")
    if _get(values, "cache_type") == "ram":
        return {"cache_bytes": size}
    DISK_CACHE.mkdir(parents=True, exist_ok=True)
    return {"cache_bytes": DISK_CACHE_MEMORY_BYTES, "cache_dir": str(DISK_CACHE.resolve()), "cache_dir_bytes": size}


def _load(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of Model."""
    load = {name: values[name] for name in ("main_gpu", "tensor_split") if values.get(name)}
    if "split_mode" in values:
        load["split_mode"] = _named("split_mode", values, dict(enumerate(SPLIT_MODES)))
    if values.get("use_mlock"):
        load["load_mode"] = "mmap_mlock" if values.get("use_mmap", True) else "mlock"
    elif "use_mmap" in values:
        load["load_mode"] = "mmap" if values["use_mmap"] else "none"
    if "kv_overrides" in values:
        load["kv_overrides"] = dict(_override(each) for each in values["kv_overrides"])
    if values.get("rpc_servers"):
        load["devices"] = [each.strip() for each in values["rpc_servers"].split(",") if each.strip()]
    return load


def _override(text: str) -> tuple[str, bool | int | float | str]:
    """Return the key and the value of ``KEY=TYPE:VALUE``."""
    found = _OVERRIDE.fullmatch(text)
    if found is None:
        raise SettingsError(f"--kv_overrides: {text!r} must be KEY=TYPE:VALUE, of the type bool, int, float or str")
    key, kind, value = found.groups()
    try:
        if kind == "bool":
            return key, value.lower() in ("true", "1")
        return key, value if kind == "str" else {"int": int, "float": float}[kind](value)
    except ValueError:
        raise SettingsError(f"--kv_overrides: {text!r} has no {kind}") from None


def _named(name: str, values: Mapping[str, Any], names: Mapping[int, str]) -> str:
    """Return the name of a number of llama.h's or ggml's."""
    number = values[name]
    if number not in names:
        told = ", ".join(f"{each} ({names[each]})" for each in sorted(names))
        raise SettingsError(f"--{name}: it must be one of {told}, not {number}")
    return names[number]
