"""Parameters that OpenAI's API lacks, by the names of llama-server and vLLM, for its completions and chat completions."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field, Tag, model_validator

from offgrid_llama.server.shapes import by_shape
from offgrid_llama.server.strict import Strict, refused

__all__ = ["CONSTRAINTS", "MAX_ADAPTERS", "Adapter", "Adapters", "FurtherFields"]

MAX_CHOICES = 1024
MAX_ADAPTERS = 64
MAX_GRAMMAR_CHARACTERS = 64 * 1024
INT32_MAX = 2**31 - 1

CONSTRAINTS = (
    "grammar", "json_schema", "regex", "lark", "choices", "structured_outputs", "guided_json", "guided_regex",
    "guided_choice", "guided_grammar",
)  # fmt: skip
"""Parameters that say what the whole text must be; a request has one of them at most."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
Word = Annotated[str, Field(max_length=1000)]
Source = Annotated[str, Field(max_length=MAX_GRAMMAR_CHARACTERS)]
Choices = Annotated[list[Word], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
Schema: TypeAlias = Annotated[
    Annotated[Source, Tag("text")] | Annotated[dict[str, Any], Tag("object")], by_shape("a schema, or its JSON")
]
SamplerNames: TypeAlias = Annotated[
    Annotated[Word, Tag("text")] | Annotated[list[Word], Field(max_length=64, fail_fast=True), Tag("list")],
    by_shape("letters, or a list of names"),
]


class Adapter(Strict):
    """An adapter of the model, by its number, and its scale."""

    id: Annotated[int, Field(ge=0, le=MAX_ADAPTERS)]
    scale: Annotated[Finite, Field(ge=-100, le=100)]


Adapters = Annotated[list[Adapter], Field(max_length=MAX_ADAPTERS, fail_fast=True)]


class StructuredOutputs(Strict):
    """vLLM's ``structured_outputs``: one of these."""

    json_: Schema | None = Field(None, alias="json")
    regex: Source | None = None
    choice: Choices | None = None
    grammar: Source | None = None
    structural_tag: Schema | None = None

    @model_validator(mode="after")
    def _check_one(self) -> StructuredOutputs:
        given = (self.json_, self.regex, self.choice, self.grammar, self.structural_tag)
        if sum(value is not None for value in given) != 1:
            raise refused("json", "give one of json, regex, choice, grammar and structural_tag")
        return self


class FurtherFields(Strict):
    """The fields that llama-server and vLLM add to OpenAI's API."""

    dynatemp_range: Annotated[Finite, Field(ge=0, le=100)] | None = Field(None, description="llama.cpp's; 0 is off.")
    dynatemp_exponent: Annotated[Finite, Field(ge=-100, le=100)] | None = None
    top_n_sigma: Annotated[Finite, Field(ge=0, le=1e6)] | None = Field(None, description="llama.cpp's; 0 is off.")
    xtc_probability: Annotated[Finite, Field(ge=0, le=1)] | None = Field(None, description="llama.cpp's; 0 is off.")
    xtc_threshold: Annotated[Finite, Field(ge=0, le=1)] | None = None
    dry_multiplier: Annotated[Finite, Field(ge=0, le=100)] | None = Field(None, description="llama.cpp's; 0 is off.")
    dry_base: Annotated[Finite, Field(ge=1, le=100)] | None = None
    dry_allowed_length: Count | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=0, le=2**20)] | None = None
    dry_sequence_breakers: Annotated[list[Word], Field(min_length=1, max_length=64, fail_fast=True)] | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = Field(None, description="llama.cpp's; 0 is off.")
    mirostat_tau: Annotated[Finite, Field(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[Finite, Field(ge=0, le=100)] | None = None
    adaptive_target: Annotated[Finite, Field(ge=0, le=1)] | None = Field(None, description="llama.cpp's.")
    adaptive_decay: Annotated[Finite, Field(ge=0, le=0.99)] | None = None
    min_keep: Count | None = None
    samplers: SamplerNames | None = Field(None, description="llama.cpp's: their order, by name or letter.")
    min_tokens: Count | None = Field(None, description="vLLM's: no token ends the text before.")
    ignore_eos: bool | None = Field(None, description="llama.cpp's and vLLM's: no token ends the text.")
    n_keep: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = Field(
        None, description="llama.cpp's: a full sequence goes on with these tokens of its beginning; -1 is the prompt."
    )
    n_discard: Count | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="vLLM's: logprobs of the prompt's tokens, and of this number of the most probable ones."
    )
    cache_prompt: bool | None = Field(None, description="llama.cpp's: use, and leave, what is computed of the prompt.")
    lora: Adapters | None = Field(
        None, description="llama.cpp's: the model's adapters to use, by number, in place of its own choice; [] is none."
    )
    timings_per_token: bool | None = Field(None, description="llama.cpp's: each event has its timings.")
    return_progress: bool | None = Field(
        None, description="llama.cpp's: events tell how much of the prompt is computed."
    )
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = Field(
        None, description="vLLM's: of requests that wait, those with a smaller one begin first."
    )
    json_schema: dict[str, Any] | None = Field(None, description="llama.cpp's: a schema of the whole text.")
    regex: Source | None = Field(None, description="A regular expression of the whole text.")
    lark: Source | None = Field(None, description="A grammar in Lark's language.")
    choices: Choices | None = Field(None, description="The texts among which the model chooses.")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's.")
    guided_json: Schema | None = Field(None, description="vLLM's earlier name.")
    guided_regex: Source | None = Field(None, description="vLLM's earlier name.")
    guided_choice: Choices | None = Field(None, description="vLLM's earlier name.")
    guided_grammar: Source | None = Field(None, description="vLLM's earlier name.")

    @model_validator(mode="after")
    def _check_prompt_logprobs(self) -> Any:
        if self.prompt_logprobs is not None and getattr(self, "stream", None):
            raise refused("prompt_logprobs", "not allowed when stream is true")
        return self

    @model_validator(mode="after")
    def _check_constraints(self) -> Any:
        given = [name for name in CONSTRAINTS if getattr(self, name, None) is not None]
        if len(given) > 1:
            raise refused(given[1], f"not allowed together with {given[0]}: both say what the text must be")
        return self
