"""The generation tasks of a worker, typed, whichever API the request came through.

To give requests a further option, add it here with its line, to arguments.py what it is for the engine, and to the dialects
that have a name for it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

__all__ = ["Constraint", "Conversation", "Options", "Sampling", "Sound", "Task", "Texts", "Utterance"]


class Sampling(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The fields of SamplingParams that a request sets; None is the model's setting."""

    temperature: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    min_keep: int | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    adaptive_target: float | None = None
    adaptive_decay: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    samplers: list[str] | None = None


class Constraint(msgspec.Struct, array_like=True):
    """The constraint of the text: a Grammar, by the name of the function of Grammar that makes it, and its argument.

    "json_object" is any JSON object; its argument is not used.
    """

    kind: Literal["gbnf", "json_object", "json_schema", "regex", "lark", "choices", "structural_tags"]
    value: Any


class Options(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The options of each task; see RequestOptions.

    Attributes:
        sampling: how tokens are chosen.
        constraint: what the text must be.
        text_bias: a number to add to the logits of all tokens of a text.
        max_tokens: of each answer, at most; None is as many as the sequence has room for, 0 only computes the prompt.
        n: answers to each prompt.
        best_of: how many are generated for each, of which the ``n`` with the largest mean logprob of a token are given; None
            gives all. Only for Texts that are not streamed.
        stop: texts that end an answer.
        logprobs: how many most probable tokens are told at each place; None tells no logprobs.
        prompt_logprobs: how many most probable tokens are told for each token of a prompt; None tells no logprobs of it.
        sampled_logprobs: whether they are those of what the samplers leave.
        chain: whether tokens are drawn as llama.cpp's own programs draw them.
        n_keep: tokens to keep where the sequence is full, and go on; None ends the answer there, -1 keeps the prompt.
        n_discard: tokens to remove there; None is half.
        min_tokens: of each answer, at least.
        ignore_eos: whether no token ends the text.
        priority: requests with a larger one start first.
        seq_id: the only sequence that the request takes; None takes any.
        cache_prompt: whether the request uses what was computed before, and leaves what it computes.
        prediction: the text that is expected as the answer.
        max_seconds: of an answer from its first token on, once it has a line break.
        min_indent: spaces at the beginning of each further line, at least; a line with fewer ends the answer.
        loras: the scales of the model's adapters, by their number, in place of the model's own; those left out are not used.
        progress: whether a stream tells how much of the prompt is computed.
        measures: whether the Chunks of a stream tell their token ids, and how fast they come.
        details: whether each answer comes with its Details.
    """

    sampling: Sampling = msgspec.field(default_factory=Sampling)
    text_bias: dict[str, float] = {}
    constraint: Constraint | None = None
    max_tokens: int | None = None
    n: int = 1
    best_of: int | None = None
    stop: list[str] = []
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    sampled_logprobs: bool = False
    chain: bool = False
    n_keep: int | None = None
    n_discard: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    priority: int = 0
    seq_id: int | None = None
    cache_prompt: bool = True
    prediction: str | None = None
    max_seconds: float | None = None
    min_indent: int = 0
    loras: dict[int, float] | None = None
    progress: bool = False
    measures: bool = False
    details: bool = False


class _Task(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A task.

    Attributes:
        options: see Options.
        names: where the client gives each argument of the library, such as ``{"sampling": "temperature"}``, for errors.
        tell_tokens: tell the token ids of the prompt and the first answer, with Answered.
    """

    options: Options = msgspec.field(default_factory=Options)
    names: dict[str, str] = {}
    tell_tokens: bool = False

    @property
    def n_completion(self) -> int:
        """How many tokens of completion the client asks for; at least one."""
        return self.options.max_tokens or 1


class Conversation(_Task, tag="conversation", forbid_unknown_fields=True):
    """Answer a conversation.

    Attributes:
        messages: dicts with "role" and "content", as OpenAI has them, for the model's template.
        add_generation_prompt: whether the prompt ends where the answer begins; only for a Call "template".
        tools, tool_choice, parallel_tool_calls, bare_calls, split_reasoning, variables, continue_final_message,
            reasoning_budget: see ChatOptions.
        response_format: as ``Engine.chat`` takes it, as OpenAI's dict.
        before: token ids that come before the prompt.
        template: Jinja text to use instead of the model's template; None is that one.
        reasons: refuse the request where the model's template has no reasoning.
        truncate: leave out the oldest messages where the conversation is too long, instead of refusing it.
        or_text: the prompt to complete where the model has no template; None refuses the request there.
    """

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = True
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    bare_calls: bool = True
    split_reasoning: bool = True
    response_format: dict[str, Any] | None = None
    variables: dict[str, Any] = {}
    reasoning_budget: int | None = None
    continue_final_message: bool = False
    before: list[int] = []
    template: str | None = None
    reasons: bool = False
    truncate: bool = False
    or_text: str | None = None

    def as_texts(self) -> Texts:
        """Return the text to complete in place of this conversation."""
        asked, options = self.response_format or {}, msgspec.structs.replace(self.options)
        if asked.get("type") == "json_schema":
            options.constraint = Constraint("json_schema", asked["json_schema"]["schema"])
        elif asked.get("type") == "json_object":
            options.constraint = Constraint("json_object", {})
        elif asked.get("type") == "structural_tag":
            options.constraint = Constraint("structural_tags", asked)
        text = self.or_text or ""
        prompt: str | list[int | str] = [*self.before, text] if self.before else text
        return Texts(options=options, names=self.names, tell_tokens=self.tell_tokens, prompts=[prompt])


class Texts(_Task, tag="texts", forbid_unknown_fields=True):
    """Complete texts.

    Attributes:
        prompts: each a text, or token ids and texts in turn.
        parse_special: whether texts may have control tokens, such as ``<|im_start|>``.
        suffix: the text behind the gap that the model fills; None continues the prompt.
        files: other texts of the project, by their names, for a model that fills gaps.
        middle: how the text in the gap begins.
        echo: whether an answer begins with its prompt. Where the logprobs of both are told, that of the token which ends an
            answer is told, too.
    """

    prompts: list[str | list[int | str]]
    parse_special: bool = False
    suffix: str | None = None
    files: list[tuple[str, str]] = []
    middle: str = ""
    echo: bool = False


class Sound(_Task, tag="sound", forbid_unknown_fields=True):
    """Write what is said in a sound.

    Attributes:
        file: the bytes of a WAV, FLAC or MP3 file.
        language, translate, context, instruction, window_seconds: see ``transcribe``.
    """

    file: bytes
    language: str | None = None
    translate: bool = False
    context: str = ""
    instruction: str | None = None
    window_seconds: float | None = None


class Utterance(_Task, tag="utterance", forbid_unknown_fields=True):
    """Speak a text.

    Attributes:
        text: is said.
        voice: the name of one of the model's voices; None is the model's own voice.
        language: see ``Synthesizer.speak``.
        as_wav: whether the sound is a WAV file, which does not tell its length where it is streamed; otherwise it is samples
            of 16 bits.
    """

    text: str
    as_wav: bool
    voice: str | None = None
    language: str | None = None


Task: TypeAlias = Conversation | Texts | Sound | Utterance
"""What a worker can be asked to generate."""
