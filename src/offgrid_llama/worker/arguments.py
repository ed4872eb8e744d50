"""The generation tasks of a worker, as arguments of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.template.choice import has_template
from offgrid_llama.engine.chat_options import ChatArguments
from offgrid_llama.model.adapter import LoRA
from offgrid_llama.model.model import Model
from offgrid_llama.model.vocab import Vocab
from offgrid_llama.sampling.grammar.grammar import Grammar
from offgrid_llama.sampling.sampling_params import SamplingParams
from offgrid_llama.tasks.request_options import RequestArguments

from .early_end import early_end
from .failures import RequestError
from .generation import Constraint, Conversation, Options

__all__ = ["chat_arguments", "check_template", "request_arguments"]


def request_arguments(
    options: Options,
    n_ctx_seq: int,
    defaults: Mapping[str, Any],
    vocab: Vocab | None = None,
    loras: Sequence[LoRA] = (),
    *,
    can_shift: bool = True,
) -> RequestArguments:
    """Return the arguments of ``Engine.submit``.

    An answer without a limit may be as long as a sequence. ``n_keep`` is at most what leaves something to shift; a
    ``repeat_last_n`` below 0 is the whole sequence.

    Args:
        options: of the request.
        n_ctx_seq: positions of a sequence.
        defaults: SamplingParams of the model, for those that the request does not set.
        vocab: the model's, for biases of texts.
        loras: the model's adapters, in the order of their numbers.
        can_shift: whether the engine's memory can be shifted; ``n_keep`` has no effect otherwise.

    Raises RequestError for an adapter that the model does not have.
    """
    said = {name: value for name, value in msgspec.structs.asdict(options.sampling).items() if value is not None}
    for text, bias in options.text_bias.items():
        tokens = [] if vocab is None else vocab.tokenize(text, add_special=False)
        said["logit_bias"] = {**said.get("logit_bias", {}), **dict.fromkeys(tokens, bias)}
    if options.constraint is not None:
        said["grammar"] = _grammar(options.constraint)
    if said.get("repeat_last_n", 0) < 0:
        said["repeat_last_n"] = n_ctx_seq
    n_keep = options.n_keep if can_shift else None
    logprobs = options.logprobs if options.best_of is None else options.logprobs or 0
    return {
        "sampling": SamplingParams(**{**defaults, **said}),
        "max_tokens": n_ctx_seq if options.max_tokens is None else min(max(options.max_tokens, 1), n_ctx_seq),
        "min_tokens": options.min_tokens, "ignore_eos": options.ignore_eos, "n_discard": options.n_discard,
        "seq_id": options.seq_id, "cache_prompt": options.cache_prompt, "progress": options.progress,
        "until": early_end(options.max_seconds, options.min_indent),
        "sampled_logprobs": options.sampled_logprobs, "prompt_logprobs": options.prompt_logprobs, "chain": options.chain,
        "prediction": options.prediction,
        "loras": None if options.loras is None else _loras(options.loras, loras),
        "n": options.best_of or options.n, "stop": options.stop, "logprobs": logprobs,
        "n_keep": None if n_keep is None else min(n_keep, n_ctx_seq - 2), "priority": options.priority,
    }  # fmt: skip


def _loras(scales: Mapping[int, float], loras: Sequence[LoRA]) -> dict[LoRA, float]:
    unknown = next((number for number in scales if not 0 <= number < len(loras)), None)
    if unknown is not None:
        raise RequestError(f"lora: there is no adapter {unknown}; this model has {len(loras)}", param="lora")
    return {loras[number]: scale for number, scale in scales.items()}


def _grammar(constraint: Constraint) -> Grammar:
    if constraint.kind == "json_object":
        return Grammar.json_schema({"type": "object"}, whitespace=True)
    made: Grammar = getattr(Grammar, constraint.kind)(constraint.value)
    return made


def chat_arguments(conversation: Conversation) -> ChatArguments:
    """Return the arguments of ``Engine.chat``, besides those of ``Engine.submit`` and the response format."""
    return {
        "tools": conversation.tools or None, "tool_choice": conversation.tool_choice if conversation.tools else None,
        "parallel_tool_calls": conversation.parallel_tool_calls, "bare_calls": conversation.bare_calls,
        "variables": conversation.variables, "reasoning_budget": conversation.reasoning_budget,
        "continue_final_message": conversation.continue_final_message, "split_reasoning": conversation.split_reasoning,
        "before": conversation.before,
    }  # fmt: skip


def check_template(model: Model, template: ChatTemplate | str | None) -> None:
    """Raise RequestError where there is no chat template."""
    if template is None and not has_template(model):
        raise RequestError("this model has no chat template: the server's settings can give it one", param="model")
