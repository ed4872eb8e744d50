"""Parameters of llama-server and vLLM in OpenAI's requests, as what a worker is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.text.json_text import read_json_text
from offgrid_llama.worker.generation import Constraint, Options

from .llama_server_options import adapters, sampler_names
from .structural_tags import StructuralTags

__all__ = ["constraint", "set_further"]

_SAMPLING = (
    "dynatemp_range", "dynatemp_exponent", "top_n_sigma", "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base",
    "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "mirostat", "mirostat_tau", "mirostat_eta",
    "adaptive_target", "adaptive_decay", "min_keep",
)  # fmt: skip
_KINDS = {
    "json_schema": "json_schema", "regex": "regex", "lark": "lark", "choices": "choices", "guided_json": "json_schema",
    "guided_regex": "regex", "guided_choice": "choices", "json": "json_schema", "choice": "choices",
}  # fmt: skip
_GRAMMARS = ("grammar", "guided_grammar")


def set_further(options: Options, said: Mapping[str, Any]) -> None:
    """Set what a request says besides OpenAI's parameters. Raises ApiError."""
    for name in _SAMPLING:
        if name in said:
            setattr(options.sampling, name, said[name])
    if "samplers" in said:
        options.sampling.samplers = sampler_names(said["samplers"])
    for name in ("min_tokens", "ignore_eos", "n_keep", "cache_prompt", "prompt_logprobs"):
        if name in said:
            setattr(options, name, said[name])
    if "lora" in said:
        options.loras = adapters(said["lora"])
    options.n_discard = said.get("n_discard") or None
    options.priority = -said.get("priority", 0)
    is_told = said.get("timings_per_token") or said.get("return_progress")
    options.progress = bool(said.get("return_progress") and said.get("stream"))
    options.measures = options.details = bool(is_told)
    options.constraint = constraint(said)


def constraint(said: Mapping[str, Any]) -> Constraint | None:
    """Return what the whole text must be; the schema has seen to it that a request says it once. Raises ApiError."""
    given = {**said, **(said.get("structured_outputs") or {})}
    grammar = next((given[name] for name in _GRAMMARS if given.get(name)), None)
    if grammar is not None:
        return Constraint("gbnf" if "::=" in grammar else "lark", grammar)
    if given.get("structural_tag") is not None:
        return Constraint("structural_tags", _tags(_schema("structured_outputs", given["structural_tag"])))
    for name, kind in _KINDS.items():
        if name in given:
            return Constraint(kind, _schema(name, given[name]) if kind == "json_schema" else given[name])  # type: ignore[arg-type]
    return None


def _tags(given: Any) -> Any:
    """Return structural tags as a worker is asked for them."""
    try:
        return StructuralTags.model_validate(given).tags()
    except ValidationError as error:
        found, param = error.errors()[0], "structured_outputs"
        place = ".".join(map(str, ("structural_tag", *found["loc"])))
        raise ApiError(400, f"{param}: {place}: {found['msg']}", code="invalid_value", param=param) from error


def _schema(name: str, given: Any) -> Any:
    try:
        return read_json_text(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ApiError(400, f"{name}: it is not valid JSON: {error}", code="invalid_value", param=name) from error
