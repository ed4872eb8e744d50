"""Parameters of llama-server and vLLM in OpenAI's requests."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.further_schemas import CONSTRAINTS
from offgrid_llama.server.dialects.openai import ChatWriter, read_chat, read_completion
from offgrid_llama.server.dialects.openai_schemas import ChatRequest, CompletionRequest
from offgrid_llama.server.validation import validated
from offgrid_llama.worker.frames import Answered, Chunk, Details, Measures, Message, TokenCounts
from offgrid_llama.worker.generation import Constraint, Options

SCHEMA = {"type": "object"}


def options(**said: Any) -> Options:
    """Return what both kinds of request make of parameters, which is the same."""
    text = read_completion(validated(CompletionRequest, {"prompt": "a", **said}, {})).what.options
    chat = read_chat(validated(ChatRequest, {"messages": [{"role": "user", "content": "a"}], **said}, {})).what.options
    assert text == chat
    return text


def test_sampling_and_ends() -> None:
    """Each goes where the worker looks for it."""
    found = options(
        dry_multiplier=0.5, dry_sequence_breakers=["x"], xtc_probability=0.1, top_n_sigma=2, dynatemp_range=0.3, mirostat=2,
        adaptive_target=0.4, samplers="kt", min_tokens=3, ignore_eos=True, n_keep=4, n_discard=5, cache_prompt=False,
        stream=True, return_progress=True,
    )  # fmt: skip
    sampling = found.sampling
    assert (sampling.dry_multiplier, sampling.dry_sequence_breakers, sampling.xtc_probability) == (0.5, ["x"], 0.1)
    assert (sampling.top_n_sigma, sampling.dynatemp_range, sampling.mirostat) == (2, 0.3, 2)
    assert (sampling.adaptive_target, sampling.samplers) == (0.4, ["top_k", "temp_ext"])
    assert (found.min_tokens, found.ignore_eos, found.n_keep, found.n_discard) == (3, True, 4, 5)
    assert (found.cache_prompt, found.progress, found.measures) == (False, True, True)


def test_adapters() -> None:
    """They are the model's, by number, each once; none is another thing than nothing said."""
    assert options().loras is None
    assert options(lora=[]).loras == {}
    assert options(lora=[{"id": 1, "scale": 0.5}, {"id": 0, "scale": -1}]).loras == {1: 0.5, 0: -1.0}
    with pytest.raises(ApiError, match="an adapter is named twice"):
        options(lora=[{"id": 1, "scale": 0.5}, {"id": 1, "scale": 1}])


def test_a_smaller_priority_comes_first() -> None:
    """As in vLLM; a worker takes the larger one first."""
    assert (options(priority=5).priority, options().priority) == (-5, 0)


@pytest.mark.parametrize(
    ("said", "constraint"),
    [
        ({"grammar": 'root ::= "a"'}, Constraint("gbnf", 'root ::= "a"')),
        ({"guided_grammar": 'start: "a"'}, Constraint("lark", 'start: "a"')),
        ({"regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_regex": "a+"}, Constraint("regex", "a+")),
        ({"structured_outputs": {"regex": "a+"}}, Constraint("regex", "a+")),
        ({"lark": 'start: "a"'}, Constraint("lark", 'start: "a"')),
        ({"choices": ["a", "b"]}, Constraint("choices", ["a", "b"])),
        ({"guided_choice": ["a", "b"]}, Constraint("choices", ["a", "b"])),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Constraint("choices", ["a", "b"])),
        ({"json_schema": SCHEMA}, Constraint("json_schema", SCHEMA)),
        ({"guided_json": '{"type": "object"}'}, Constraint("json_schema", SCHEMA)),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint("json_schema", SCHEMA)),
        ({}, None),
    ],
)
def test_what_the_text_must_be(said: dict[str, Any], constraint: Constraint | None) -> None:
    """It is said in one of several ways, by the names of llama-server, of vLLM, and of this server."""
    assert options(**said).constraint == constraint


@pytest.mark.parametrize(
    "wrong",
    [
        {"regex": "a", "choices": ["a"]},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        {"guided_json": "{"},
        {"choices": []},
        {"mirostat": 3},
        {"min_tokens": -1},
    ],
)
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    """The error names the parameter."""
    with pytest.raises(ApiError) as error:
        options(**wrong)
    assert error.value.status == 400
    assert (error.value.param or "").partition(".")[0] in wrong


def test_each_constraint_is_a_parameter() -> None:
    """The names that exclude each other are those of the schema."""
    assert set(CONSTRAINTS) <= ChatRequest.model_fields.keys()


def test_progress_and_timings_of_a_stream() -> None:
    """Progress has no choice; timings come with the chunks that have them, and with a whole response."""
    writer, measures = ChatWriter("m"), Measures(9, 4, 2, 0.5, 0.25)
    told = msgspec.json.decode(writer.event(Chunk(1, 0, "", n_computed=6, measures=measures)).removeprefix(b"data: "))
    assert (told["choices"], told["prompt_progress"]["processed"]) == ([], 6)
    told = msgspec.json.decode(writer.event(Chunk(1, 0, "a", measures=measures)).removeprefix(b"data: "))
    assert (told["choices"][0]["delta"], told["timings"]["predicted_n"]) == ({"content": "a"}, 2)
    message = Message("a", "", [], "stop", None, "", Details([], "", 0, False, measures, {}))
    whole = writer.whole(Answered(1, TokenCounts(9, 4, 2), [message]))
    assert whole["timings"]["prompt_n"] == 5
    assert "timings" not in writer.whole(Answered(1, TokenCounts(9, 4, 2), [Message("a", "", [], "stop")]))
