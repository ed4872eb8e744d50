"""Parameters of llama-server's requests as what a worker is asked for, and back as its ``generation_settings``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.llama_server import LlamaServer
from offgrid_llama.worker.frames import Measures
from offgrid_llama.worker.generation import Constraint, Options, Sampling

from .further_schemas import Adapter

__all__ = [
    "LETTERS",
    "SAMPLERS",
    "generation_settings",
    "model_of",
    "options",
    "progress",
    "prompts",
    "sampler_names",
    "scales",
    "timings",
]

SAMPLERS = {
    "penalties": "penalties", "dry": "dry", "top_n_sigma": "top_n_sigma", "top_k": "top_k", "typ_p": "typical",
    "typical_p": "typical", "typical": "typical", "top_p": "top_p", "min_p": "min_p", "xtc": "xtc",
    "temperature": "temp_ext", "infill": "infill", "top-k": "top_k", "top-p": "top_p", "nucleus": "top_p",
    "typical-p": "typical", "typ-p": "typical", "typ": "typical", "min-p": "min_p", "temp": "temp_ext",
    "top-n-sigma": "top_n_sigma", "adaptive_p": "", "adaptive-p": "",
}  # fmt: skip
"""llama-server's samplers, under all of their names, by ours. Adaptive-p selects, so it always comes last."""
LETTERS = {
    "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typical", "p": "top_p", "m": "min_p", "x": "xtc",
    "t": "temp_ext", "i": "infill", "a": "",
}  # fmt: skip
_THEIRS = {"typical": "typ_p", "temp_ext": "temperature"}
_SAME = (
    "temperature", "dynatemp_range", "dynatemp_exponent", "top_p", "min_p", "xtc_probability", "xtc_threshold", "typical_p",
    "repeat_last_n", "repeat_penalty", "frequency_penalty", "presence_penalty", "dry_multiplier", "dry_allowed_length",
    "dry_penalty_last_n", "dry_sequence_breakers", "mirostat", "mirostat_tau", "mirostat_eta", "adaptive_decay", "min_keep",
)  # fmt: skip
_FORBIDDING_BIAS = -100
_N_SEEDS = 2**32 - 1
_WHOLE_CONTEXT = 2**20


def sampler_names(given: str | Iterable[str]) -> list[str]:
    """Return our names of samplers that are given by name, by names with ``;`` between them, or by letters."""
    if isinstance(given, str) and (";" in given or given in SAMPLERS):
        given = given.split(";")
    found = [LETTERS.get(letter) for letter in given] if isinstance(given, str) else [SAMPLERS.get(n) for n in given]
    return [name for name in found if name]


def model_of(said: Mapping[str, Any], server: LlamaServer | None) -> str | None:
    """Return the model that a request is for. In llama-server's manner there is one, and names do not count."""
    name: str | None = said.get("model")
    return name if server is None or server.router else None


def options(said: Mapping[str, Any], server: LlamaServer | None, logprobs: int | None) -> Options:
    """Return what a request says about its answers.

    Args:
        said: the parameters that it sets.
        server: of llama-server's manner; None where this server is asked in passing.
        logprobs: how many most probable tokens are told at each place.
    """
    biases, text_bias = _biases(said.get("logit_bias"))
    sampling = _sampling(said)
    sampling.logit_bias = biases or None
    stop = said.get("stop") or ()
    slot = said.get("id_slot", -1)
    return Options(
        sampling=sampling, text_bias=text_bias, constraint=_constraint(said), max_tokens=_limit(said, server),
        min_tokens=said.get("min_tokens", 0), n=said.get("n_cmpl", 1),
        stop=[text for text in ([stop] if isinstance(stop, str) else stop) if text], logprobs=logprobs,
        sampled_logprobs=bool(said.get("post_sampling_probs")), n_keep=_n_keep(said, server),
        n_discard=said.get("n_discard") or None, ignore_eos=bool(said.get("ignore_eos")),
        priority=said.get("priority", 0), seq_id=slot if slot >= 0 else None,
        cache_prompt=said.get("cache_prompt", server is None or server.cache_prompt),
        loras=adapters(said["lora"]) if "lora" in said else None,
        progress=bool(said.get("return_progress") and said.get("stream")), measures=bool(said.get("stream")),
        max_seconds=said["t_max_predict_ms"] / 1e3 if said.get("t_max_predict_ms", 0) > 0 else None,
        min_indent=said.get("n_indent", 0), details=True, chain=_draws_alike(said, server),
    )  # fmt: skip


def _draws_alike(said: Mapping[str, Any], server: LlamaServer | None) -> bool:
    """Return whether the same seed must draw the same as with llama-server: in its manner, where a seed is set."""
    return server is not None and (server.seeded or said.get("seed", -1) != -1)


def _limit(said: Mapping[str, Any], server: LlamaServer | None) -> int | None:
    """Return the most tokens of an answer: the request's, or the server's where that sets none."""
    limits = (said.get("n_predict", -1), -1 if server is None else server.n_predict)
    return next((limit for limit in limits if limit >= 0), None)


def _n_keep(said: Mapping[str, Any], server: LlamaServer | None) -> int | None:
    """Return what a context shift keeps; None shifts nothing. In llama-server's manner, its flag decides about that."""
    if server is not None:
        return int(said.get("n_keep", server.n_keep)) if server.context_shift else None
    return said.get("n_keep")


def _sampling(said: Mapping[str, Any]) -> Sampling:
    found = Sampling(**{name: said[name] for name in _SAME if name in said})
    if "top_k" in said:
        found.top_k = max(said["top_k"], 0)
    if "top_n_sigma" in said:
        found.top_n_sigma = max(said["top_n_sigma"], 0.0)
    if said.get("dry_base", 0) >= 1:
        found.dry_base = said["dry_base"]
    if said.get("adaptive_target", -1) >= 0:
        found.adaptive_target = said["adaptive_target"]
    for name in ("repeat_last_n", "dry_penalty_last_n"):
        if said.get(name) == -1:  # the whole context
            setattr(found, name, _WHOLE_CONTEXT)
    if said.get("seed", -1) != -1:
        found.seed = said["seed"] % _N_SEEDS
    if "samplers" in said:
        found.samplers = sampler_names(said["samplers"])
    return found


def _biases(given: Any) -> tuple[dict[int, float], dict[str, float]]:
    """Return biases of tokens, and of texts. A bias of ``false`` or -100 forbids."""
    tokens: dict[int, float] = {}
    texts: dict[str, float] = {}
    for token, bias in _pairs(given):
        value = -math.inf if bias is None or bias is False or bias <= _FORBIDDING_BIAS else float(bias)
        if isinstance(token, str) and not token.isdecimal():
            texts[token] = value
        else:
            tokens[int(token)] = value
    return tokens, texts


def _pairs(given: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(given, dict):
        yield from given.items()
        return
    for each in given or ():
        yield (each["token"], each["bias"]) if isinstance(each, dict) else (each[0], each[1])


def _constraint(said: Mapping[str, Any]) -> Constraint | None:
    if said.get("grammar"):
        return Constraint("gbnf", said["grammar"])
    if "json_schema" in said:
        return Constraint("json_schema", said["json_schema"] or {"type": "object"})
    return None


def prompts(given: Any) -> tuple[list[str | list[int | str]], bool]:
    """Return the prompts of a request, which the schema has checked, and whether it has one only."""
    if isinstance(given, list) and not any(isinstance(each, int) for each in given):
        return [_prompt(each) for each in given], False
    return [_prompt(given)], True


def _prompt(given: Any) -> str | list[int | str]:
    if isinstance(given, dict):
        return (
            given["prompt_string"] if "prompt_string" in given else "".join(part["text"] for part in given["content"])
        )
    prompt: str | list[int | str] = given
    return prompt


def adapters(given: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return the scale of each adapter, by its number. Raises ApiError for one that is named twice."""
    found = {each["id"]: float(each["scale"]) for each in given}
    if len(found) < len(given):
        raise ApiError(400, "an adapter is named twice", param="lora")
    return found


def scales(given: Sequence[Adapter] | None) -> dict[int, float] | None:
    """Return the scale of each adapter of a request that has been read, as ``adapters`` does; None for none said."""
    return None if given is None else adapters([each.model_dump() for each in given])


def timings(measures: Measures) -> dict[str, Any]:
    """Return llama-server's ``timings``. The first token costs no step of its own, so rates are over the others."""
    n_prompt, n_steps = measures.n_prompt - measures.n_cached, max(measures.n_tokens - 1, 0)
    prompt_ms, predicted_ms = 1e3 * measures.prompt_seconds, 1e3 * measures.completion_seconds
    found = {
        "cache_n": measures.n_cached, "prompt_n": n_prompt, "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / n_prompt if n_prompt else 0.0,
        "prompt_per_second": 1e3 / prompt_ms * n_prompt if prompt_ms else 0.0,
        "predicted_n": measures.n_tokens, "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / n_steps if n_steps else 0.0,
        "predicted_per_second": 1e3 / predicted_ms * n_steps if predicted_ms else 0.0,
    }  # fmt: skip
    if measures.n_guessed:
        found |= {"draft_n": measures.n_guessed, "draft_n_accepted": measures.n_right}
    return found


def progress(n_computed: int, measures: Measures) -> dict[str, Any]:
    """Return how much of a prompt is computed."""
    return {
        "total": measures.n_prompt, "cache": measures.n_cached, "processed": n_computed,
        "time_ms": 0.0 if n_computed == measures.n_cached else 1e3 * measures.prompt_seconds,
    }  # fmt: skip


def generation_settings(
    params: Mapping[str, Any], said: Mapping[str, Any], server: LlamaServer | None
) -> dict[str, Any]:
    """Return llama-server's ``generation_settings``.

    Args:
        params: the SamplingParams that were used, as Details has them.
        said: the parameters that the request sets.
        server: as ``options`` takes it.
    """
    limit, stop = _limit(said, server), said.get("stop") or ()
    return {
        **_sampling_settings(params),
        "stop": [stop] if isinstance(stop, str) else list(stop),
        "n_predict": -1 if limit is None else limit, "max_tokens": -1 if limit is None else limit,
        "n_keep": said.get("n_keep", 0), "n_discard": said.get("n_discard", 0),
        "ignore_eos": bool(said.get("ignore_eos")), "stream": bool(said.get("stream")),
        "n_probs": said.get("n_probs", 0), "grammar": said.get("grammar", ""), "grammar_lazy": False,
        "grammar_triggers": [], "preserved_tokens": [], "chat_format": "Content-only", "reasoning_format": "none",
        "reasoning_in_content": False, "generation_prompt": "", "speculative.types": "none",
        "timings_per_token": bool(said.get("timings_per_token")),
        "post_sampling_probs": bool(said.get("post_sampling_probs")), "backend_sampling": False,
        "lora": said.get("lora", []),
    }  # fmt: skip


def _sampling_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    seed, target = params.get("seed"), params.get("adaptive_target")
    return {
        **{name: params[name] for name in _SAME if name in params}, "top_k": params["top_k"],
        "seed": _N_SEEDS if seed is None else seed, "top_n_sigma": params["top_n_sigma"] or -1.0,
        "dry_base": params["dry_base"], "adaptive_target": -1.0 if target is None else target,
        "samplers": [_THEIRS.get(name, name) for name in params["samplers"]],
        "logit_bias": [
            {"token": token, "bias": None if math.isinf(bias) else bias} for token, bias in params["logit_bias"]
        ],
    }  # fmt: skip
