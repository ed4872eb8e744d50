"""llama-server's requests as what a worker is asked for, and a worker's frames in llama-server's shape."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects import llama_server_openai
from offgrid_llama.server.dialects.llama_server import LLAMA_SERVER, LlamaWriter, read_completion, read_infill
from offgrid_llama.server.dialects.llama_server_options import sampler_names, timings
from offgrid_llama.server.dialects.llama_server_schemas import ChatCompletionRequest, CompletionRequest, InfillRequest
from offgrid_llama.server.llama_server import LlamaServer
from offgrid_llama.server.validation import validated
from offgrid_llama.worker.frames import Answered, Chunk, Details, Measures, Message, TokenCounts, TokenLogprob
from offgrid_llama.worker.generation import Conversation, Options, Texts

PARAMS: dict[str, Any] = {
    "temperature": 0.5, "top_k": 40, "top_n_sigma": 0.0, "dry_base": 1.75, "seed": 7, "adaptive_target": None,
    "samplers": ["penalties", "typical", "temp_ext"], "logit_bias": [[2, -math.inf]],
}  # fmt: skip


def completion(manner: LlamaServer | None = None, **said: Any) -> Texts:
    body = validated(CompletionRequest, {"prompt": "a", **said}, {})
    what = read_completion(body, manner).what
    assert isinstance(what, Texts)
    return what


def options(manner: LlamaServer | None = None, **said: Any) -> Options:
    return completion(manner, **said).options


def chat(manner: LlamaServer | None = None, **said: Any) -> Conversation:
    body = validated(ChatCompletionRequest, {"messages": [{"role": "user", "content": "a"}], **said}, {})
    what = llama_server_openai.read_chat(body, manner).what
    assert isinstance(what, Conversation)
    return what


def details(n_tokens: int = 2) -> Details:
    return Details([5, 6], "the prompt", 1, False, Measures(9, 4, n_tokens, 0.5, 0.25), PARAMS)


def events(data: bytes) -> list[Any]:
    return [msgspec.json.decode(line.removeprefix(b"data: ")) for line in data.split(b"\n\n") if line]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ["a"]),
        ([1, 2], [[1, 2]]),
        ([1, "a", 2], [[1, "a", 2]]),
        (["a", "b"], ["a", "b"]),
        ([[1, 2], "a", {"prompt_string": "b"}], [[1, 2], "a", "b"]),
        ({"prompt_string": "a"}, ["a"]),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, ["ab"]),
    ],
)
def test_prompts_in_all_forms(given: Any, prompts: list[Any]) -> None:
    """A prompt is a text, tokens, both in turn, or an object; a list of these is several."""
    assert completion(prompt=given).prompts == prompts


@pytest.mark.parametrize(
    "given",
    [None, 5, [], [[]], [1.5], {}, {"content": "a"}, {"prompt_string": "a", "multimodal_data": ["x"]}, [[1, [2]]]],
)
def test_what_is_no_prompt(given: Any) -> None:
    """It is refused by name, and so is what needs media."""
    with pytest.raises(ApiError) as error:
        completion(prompt=given)
    assert (error.value.status, error.value.param) == (400, "prompt")


@pytest.mark.parametrize(
    "given",
    [
        [[5, -1.5], [6, False], ["a b", -200]],
        [{"token": 5, "bias": -1.5}, {"token": 6, "bias": None}, {"token": "a b", "bias": -100}],
        {"5": -1.5, "6": False, "a b": -100},
    ],
)
def test_biases_in_three_forms(given: Any) -> None:
    """Pairs, objects, or one object; false and -100 forbid; a text is one of all its tokens."""
    found = options(logit_bias=given)
    assert found.sampling.logit_bias == {5: -1.5, 6: -math.inf}
    assert found.text_bias == {"a b": -math.inf}


def test_samplers_by_name_and_by_letter() -> None:
    """Their names are llama-server's, with their synonyms; one that is unknown is left out, as llama-server does."""
    ours = ["top_k", "typical", "temp_ext"]
    assert sampler_names(["top_k", "typ_p", "temperature"]) == sampler_names("kyt") == ours
    assert sampler_names("top_k;typ_p;temperature") == ours
    assert options(samplers=["top-k", "nonsense", "min_p"]).sampling.samplers == ["top_k", "min_p"]


def test_limits_of_request_and_server() -> None:
    """The request's counts, and then the server's; -1 is none, and 0 computes the prompt alone."""
    assert options().max_tokens is None
    assert options(n_predict=-1).max_tokens is None
    assert options(n_predict=0).max_tokens == 0
    assert options(max_tokens=7).max_tokens == options(n_predict=7).max_tokens == 7
    manner = LlamaServer("m", n_predict=5)
    assert [options(manner, n_predict=n).max_tokens for n in (-1, 3, 9)] == [5, 3, 9]


def test_options_of_a_request() -> None:
    """Each goes where the worker looks for it."""
    found = options(
        id_slot=2, cache_prompt=False, ignore_eos=True, min_tokens=3, n_keep=4, n_discard=5, stop="x", n_probs=6,
        post_sampling_probs=True, lora=[{"id": 1, "scale": 0.5}], seed=-1, dry_multiplier=0.7, xtc_probability=0.1,
        mirostat=2, top_n_sigma=-1, adaptive_target=-1, grammar='root ::= "a"', stream=True, return_progress=True,
        t_max_predict_ms=1500, n_indent=2,
    )  # fmt: skip
    assert (found.max_seconds, found.min_indent, options(t_max_predict_ms=0).max_seconds) == (1.5, 2, None)
    assert (found.seq_id, found.cache_prompt, found.ignore_eos, found.min_tokens) == (2, False, True, 3)
    assert (found.n_keep, found.n_discard, found.stop, found.logprobs) == (4, 5, ["x"], 6)
    assert (found.sampled_logprobs, found.loras, found.progress) == (True, {1: 0.5}, True)
    assert (found.sampling.dry_multiplier, found.sampling.mirostat, found.sampling.top_n_sigma) == (0.7, 2, 0.0)
    assert (found.sampling.seed, found.sampling.adaptive_target) == (None, None)
    assert found.constraint is not None
    assert found.constraint.kind == "gbnf"
    assert options(json_schema={}).constraint == msgspec.structs.replace(
        found.constraint, kind="json_schema", value={"type": "object"}
    )


def test_a_context_shift_is_the_servers_to_make() -> None:
    """In llama-server's manner its flag decides; otherwise a request that says n_keep has one."""
    assert options().n_keep is None
    assert options(LlamaServer("m"), n_keep=5).n_keep is None
    assert options(LlamaServer("m", context_shift=True, n_keep=3)).n_keep == 3
    assert options(LlamaServer("m", context_shift=True), n_keep=-1).n_keep == -1


def test_a_gap_to_fill() -> None:
    """The prefix is the prompt, the files come first, and the prompt is how the gap begins."""
    body = validated(
        InfillRequest,
        {"input_prefix": "a", "input_suffix": "b", "prompt": "c", "input_extra": [{"filename": "f", "text": "t"}]},
        {},
    )
    what = read_infill(body, None).what
    assert isinstance(what, Texts)
    assert (what.prompts, what.suffix, what.middle, what.files) == (["a"], "b", "c", [("f", "t")])
    for extra in ({}, {"filename": "ok"}, {"filename": 1, "text": "a"}):
        with pytest.raises(ApiError):
            validated(InfillRequest, {"input_prefix": "a", "input_suffix": "b", "input_extra": [extra]}, {})


def test_a_whole_answer() -> None:
    """It has llama-server's fields; a single one is an object, several are a list."""
    message = Message("a\nb", "", [], "stop", None, "END", details())
    answered = Answered(1, TokenCounts(9, 4, 2), [message])
    body = LlamaWriter("m", {"n_predict": 5, "return_tokens": True}, None, single=True).whole(answered)
    assert (body["content"], body["tokens"], body["id_slot"], body["stop"]) == ("a\nb", [5, 6], 1, True)
    assert (body["stop_type"], body["stopping_word"], body["has_new_line"]) == ("word", "END", True)
    assert (body["tokens_evaluated"], body["tokens_predicted"], body["prompt"]) == (9, 2, "the prompt")
    settings = body["generation_settings"]
    assert settings["logit_bias"] == [{"token": 2, "bias": None}]
    assert settings["samplers"] == ["penalties", "typ_p", "temperature"]
    assert (settings["n_predict"], settings["seed"], settings["adaptive_target"]) == (5, 7, -1.0)
    several = LlamaWriter("m", {}, None, single=False).whole(answered)
    assert [each["tokens"] for each in several] == [[]]


def test_fields_of_a_response() -> None:
    """A client gets the fields that it names; a path leads into an object, and what is not there is left out."""
    said = {"response_fields": ["content", "generation_settings/n_predict", "nothing/there"], "n_predict": 5}
    message = Message("a", "", [], "length", None, "", details())
    body = LlamaWriter("m", said, None, single=True).whole(Answered(1, TokenCounts(9, 4, 2), [message]))
    assert body == {"content": "a", "generation_settings/n_predict": 5}


def test_rates_are_over_steps() -> None:
    """The first token costs no step of its own; what was cached is not counted as computed."""
    found = timings(Measures(9, 4, 3, 0.5, 0.25))
    assert (found["cache_n"], found["prompt_n"], found["prompt_ms"], found["prompt_per_second"]) == (4, 5, 500, 10)
    assert (found["predicted_n"], found["predicted_per_token_ms"], found["predicted_per_second"]) == (3, 125, 8)
    one = timings(Measures(9, 9, 1, 0.0, 0.0))
    assert all(value >= 0 and math.isfinite(value) for value in one.values())


def test_a_stream() -> None:
    """It tells its progress, has an event for each token with probabilities, and ends with the whole description."""
    writer = LlamaWriter("m", {"stream": True, "timings_per_token": True}, None, single=True)
    measures = Measures(9, 4, 0, 0.5)
    (progress,) = events(writer.event(Chunk(1, 0, "", n_computed=6, measures=measures)))
    assert progress["prompt_progress"] == {"total": 9, "cache": 4, "processed": 6, "time_ms": 500}
    assert progress["timings"]["prompt_n"] == 2
    logprobs = [TokenLogprob(b"a", -0.5, [(b"a", -0.5)], [5, 5]), TokenLogprob(b"b", -1.0, [(b"c", -0.1)], [6, 7])]
    found = events(
        writer.event(Chunk(1, 0, "ab", logprobs=logprobs, token_ids=[5, 6], measures=Measures(9, 4, 2, 0.5, 0.1)))
    )
    assert [each["tokens"] for each in found] == [[5], [6]]
    assert "".join(each["content"] for each in found) == "ab"
    assert found[1]["completion_probabilities"][0]["top_logprobs"] == [
        {"id": 7, "token": "c", "bytes": [99], "logprob": -0.1}
    ]
    (last,) = events(writer.event(Chunk(1, 0, "", finish_reason="length", details=details())))
    assert (last["stop"], last["stop_type"], last["content"]) == (True, "limit", "")
    assert writer.begin() == writer.end(Answered(1, TokenCounts(9, 4, 2))) == b""


def test_errors_have_the_status_as_code() -> None:
    """A prompt that is too long tells both numbers."""
    assert LLAMA_SERVER.error(ApiError(501, "no")) == {
        "error": {"code": 501, "message": "no", "type": "not_supported_error"}
    }
    long = ApiError(400, "x", code="context_length_exceeded", details={"n_tokens": 300, "n_ctx": 256})
    told = LLAMA_SERVER.error(long)["error"]
    assert (told["type"], told["n_prompt_tokens"], told["n_ctx"]) == ("exceed_context_size_error", 300, 256)
    assert "exceeds the available context size" in told["message"]


def test_a_conversation_that_ends_with_the_assistant_goes_on() -> None:
    """Unless the request, or the server, says otherwise; two such messages are refused."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert chat(messages=talk).continue_final_message
    assert not chat(messages=talk, continue_final_message=False).continue_final_message
    assert not chat(LlamaServer("m", prefill_assistant=False), messages=talk).continue_final_message
    for wrong in (
        {"messages": [*talk, talk[1]]},
        {"messages": talk, "add_generation_prompt": True, "continue_final_message": True},
    ):
        with pytest.raises(ApiError):
            chat(**wrong)


def test_reasoning_of_the_server() -> None:
    """Off closes it and turns the template's switch, a budget limits it, "none" leaves it in the content."""
    off = chat(LlamaServer("m", reasoning="off"))
    assert (off.variables["enable_thinking"], off.reasoning_budget) == (False, 0)
    assert chat(LlamaServer("m")).variables["enable_thinking"] is True
    assert chat(LlamaServer("m", reasoning_budget=9)).reasoning_budget == 9
    assert chat(LlamaServer("m"), reasoning_budget_tokens=3).reasoning_budget == 3
    assert not chat(LlamaServer("m", reasoning_format="none")).split_reasoning
    assert (chat().variables, chat().reasoning_budget, chat().split_reasoning) == ({}, None, True)


def test_a_stream_of_a_conversation() -> None:
    """Its first event tells the role alone; its last but one the reason, then the usage with the timings."""
    said = {"stream": True, "stream_options": {"include_usage": True}}
    writer = llama_server_openai.LlamaChatWriter("m", said, None)
    found = events(writer.begin() + writer.event(Chunk(1, 0, "a", token_ids=[5])))
    assert [each["choices"][0]["delta"] for each in found] == [{"role": "assistant", "content": None}, {"content": "a"}]
    assert all(each["system_fingerprint"].startswith("b") for each in found)
    (last,) = events(writer.event(Chunk(1, 0, "", finish_reason="length", details=details())))
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    end = writer.end(Answered(1, TokenCounts(9, 4, 2)))
    assert end.endswith(b"data: [DONE]\n\n")
    (usage,) = events(end.removesuffix(b"data: [DONE]\n\n"))
    assert (usage["choices"], usage["usage"]["prompt_tokens"], usage["timings"]["predicted_n"]) == ([], 9, 2)
