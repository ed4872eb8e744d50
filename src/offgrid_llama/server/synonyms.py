"""Synonyms: what other servers call the parameters of requests, and what this one calls them."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

__all__ = ["SYNONYMS", "hint"]

MAX_TYPO_CHARACTERS = 40
"""Longer names are not compared with those that are known: the client chooses them, and comparing takes time."""
MIN_SIMILARITY = 0.8

SYNONYMS: dict[str, tuple[str, ...]] = {
    "repetition_penalty": ("repeat_penalty",), "rep_pen": ("repeat_penalty",),
    "penalty_last_n": ("repeat_last_n",), "repetition_penalty_range": ("repeat_last_n",),
    "repeat_penalty_last_n": ("repeat_last_n",), "n_predict": ("max_tokens",), "num_predict": ("max_tokens",),
    "max_new_tokens": ("max_tokens",), "max_output_tokens": ("max_tokens",), "max_length": ("max_tokens",),
    "max_gen_len": ("max_tokens",), "typical": ("typical_p",), "typ_p": ("typical_p",), "temp": ("temperature",),
    "stop_sequences": ("stop",), "stop_sequence": ("stop",), "stop_words": ("stop",), "stop_strings": ("stop",),
    "random_seed": ("seed",), "n_probs": ("top_logprobs", "logprobs"), "top_n_tokens": ("top_logprobs", "logprobs"),
    "num_logprobs": ("top_logprobs", "logprobs"), "best_of_n": ("n",), "num_return_sequences": ("n",),
    "format": ("response_format",), "structural_tag": ("response_format",),
    "max_tokens": ("max_output_tokens",), "max_completion_tokens": ("max_output_tokens", "max_tokens"),
    "response_format": ("text", "output_config"), "reasoning_effort": ("reasoning", "output_config"),
    "functions": ("tools",), "function_call": ("tool_choice",), "enable_thinking": ("chat_template_kwargs",),
    "template_kwargs": ("chat_template_kwargs",), "think": ("reasoning_effort",), "thinking": ("reasoning_effort",),
    "reasoning": ("reasoning_effort",), "thinking_budget": ("reasoning_budget",),
    "thinking_budget_tokens": ("reasoning_budget",), "max_reasoning_tokens": ("reasoning_budget",),
    "logit_biases": ("logit_bias",), "streaming": ("stream",), "model_name": ("model",), "system_prompt": ("messages",),
    "prompt": ("messages", "input", "query"), "messages": ("input", "prompt"),
    "inputs": ("prompt", "input", "messages", "content"), "input": ("prompt", "messages", "content"),
    "text": ("content", "input", "prompt"), "texts": ("input", "documents"), "content": ("input", "prompt"),
    "input_prefix": ("prompt",), "input_suffix": ("suffix",), "passages": ("documents",), "top_k": ("top_n",),
    "k": ("top_n", "top_k"), "return_text": ("return_documents",),
    "special": ("parse_special",), "ids": ("tokens",), "token_ids": ("tokens",),
    "continue_final": ("continue_final_message",), "output_dimension": ("dimensions",),
    "output_dimensionality": ("dimensions",), "input_schema": ("parameters",), "inputschema": ("parameters",),
    "args": ("parameters",), "arguments": ("parameters",), "schema": ("parameters",), "dim": ("dimensions",),
    "embedding_type": ("encoding_format",), "stop": ("stop_sequences",), "parameters": ("input_schema",),
    "parallel_tool_calls": ("tool_choice",), "reasoning_budget": ("thinking",), "user": ("metadata",),
}  # fmt: skip
"""By the name in llama.cpp, vLLM, Ollama, TGI and others: ours, of which a request has the first that its schema knows."""


def hint(unknown: str, known: Collection[str]) -> str:
    """Return what an error about an unknown parameter adds: how it is called here, or what may be meant; or "".

    Args:
        unknown: the name that the client gave.
        known: the names that the schema has.
    """
    ours = next((name for name in SYNONYMS.get(unknown.lower(), ()) if name in known), None)
    if ours is not None:
        return f"; here it is called {ours}"
    if len(unknown) <= MAX_TYPO_CHARACTERS:
        for close in get_close_matches(unknown.lower(), known, 1, MIN_SIMILARITY):
            return f"; did you mean {close}?"
    return ""
