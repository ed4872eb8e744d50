"""What Pydantic AI's histories, settings and profiles become for an engine; no model is loaded.

PYTHONPATH=tests python -m pytest -c /dev/null --rootdir . -o anyio_mode=auto docs/integrations/pydantic_ai_units.py
"""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    BinaryContent,
    ImageUrl,
)
from pydantic_ai.exceptions import (
    UserError,
)
from pydantic_ai.messages import (
    CachePoint,
    CompactionPart,
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    RetryInfo,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolAvailabilityDeltaPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters, override_allow_model_requests
from pydantic_ai.settings import ToolOrOutput
from pydantic_ai.tools import ToolDefinition

from offgrid_llama.integrations.pydantic_ai import (
    OffgridLlamaModel,
    OffgridLlamaModelSettings,
)
from offgrid_llama.integrations.pydantic_ai.messages import instructions_of, messages_of
from offgrid_llama.integrations.pydantic_ai.options import options_of

NAME = "smollm2-135m-instruct"
GREEDY = OffgridLlamaModelSettings(temperature=0, max_tokens=200)
MODEL = OffgridLlamaModel(NAME, settings=GREEDY)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """An engine speaks asyncio."""
    return "asyncio"


def tool(name: str, **properties: Any) -> ToolDefinition:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return ToolDefinition(name=name, parameters_json_schema=schema, description=f"The {name}")


class TestMessages:
    """Histories as an engine takes them."""

    def test_a_whole_history(self) -> None:
        """Leading system prompts and instructions are one message; calls, results and reasoning keep their places."""
        history = [
            ModelRequest([SystemPromptPart("Be brief."), SystemPromptPart("Be kind."), UserPromptPart("How is Bern?")]),
            ModelResponse(
                [ThinkingPart("A tool."), TextPart("I look."), ToolCallPart("weather", {"city": "Bern"}, "1")]
            ),
            ModelRequest(
                [ToolReturnPart("weather", {"sky": "grey"}, "1"), UserPromptPart(["And", TextContent("Oslo?")])]
            ),
            ModelResponse([ToolCallPart("now", None, "2"), ToolCallPart("now", '{"a": 1}', "3")]),
            ModelRequest([RetryFeedbackPart("Wrong.", retry=RetryInfo("model_retry")), SystemPromptPart("Hurry.")]),
        ]
        told = messages_of(history, "Be terse.")
        assert told[0] == {"role": "system", "content": "Be brief.\n\nBe kind.\n\nBe terse."}
        assert told[1] == {"role": "user", "content": "How is Bern?"}
        assert (told[2]["content"], told[2]["reasoning_content"]) == ("I look.", "A tool.")
        assert json.loads(told[2]["tool_calls"][0]["function"]["arguments"]) == {"city": "Bern"}
        assert told[3] == {"role": "tool", "tool_call_id": "1", "name": "weather", "content": '{"sky":"grey"}'}
        assert told[4] == {"role": "user", "content": "And\n\nOslo?"}
        assert [call["function"]["arguments"] for call in told[5]["tool_calls"]] == ["{}", '{"a":1}']
        assert told[6]["role"] == "user"
        assert "Wrong." in told[6]["content"]
        assert told[7] == {"role": "system", "content": "Hurry."}

    def test_instructions_of_a_history(self) -> None:
        """Without an agent the instructions are those of the last turn."""
        params = ModelRequestParameters()
        asked = ModelRequest([UserPromptPart("Hi")], instructions="Be terse.")
        called = ModelResponse([ToolCallPart("now", {}, "1")])
        returned = ModelRequest([ToolReturnPart("now", "12", "1")])
        assert instructions_of([asked, called, returned], params) == "Be terse."
        assert instructions_of([asked, called, ModelRequest([UserPromptPart("Bye")])], params) == ""

    def test_what_says_nothing_is_left_out(self) -> None:
        """A response without words, and marks for a cache, are no messages; a summary is one."""
        request = ModelRequest([UserPromptPart(["Hi", CachePoint()]), CompactionPart("They met.")])
        told = messages_of([request, ModelResponse([]), ModelResponse([ThinkingPart(""), TextPart("")])])
        assert [each["role"] for each in told] == ["user", "user"]
        assert told[0]["content"] == "Hi"
        assert told[1]["content"].endswith("They met.")

    @pytest.mark.parametrize(
        "file", [ImageUrl("https://example.com/a.png"), BinaryContent(b"%PDF", media_type="application/pdf")]
    )
    def test_files_are_refused(self, file: Any) -> None:
        """The error names the place, and the kind: the model fetches nothing, and reads no documents."""
        with pytest.raises(UserError, match=r"messages\[0\]\.parts\[0\]\.content\[1\]: .* no (ImageUrl|Binary)"):
            messages_of([ModelRequest([UserPromptPart(["What is this?", file])])])
        with pytest.raises(UserError, match=r"messages\[0\]\.parts\[0\]\.content: "):
            messages_of([ModelRequest([ToolReturnPart("look", ["seen", file], "1")])])

    def test_parts_for_agents_are_refused(self) -> None:
        """A part that only ``prepare_messages`` can write names it."""
        with pytest.raises(UserError, match="prepare_messages"):
            messages_of([ModelRequest([ToolAvailabilityDeltaPart(tools_added=["a"])])])


class TestOptions:
    """Settings and parameters as an engine takes them."""

    def test_settings(self) -> None:
        """Those that an engine knows have its names; those of other providers are left out."""
        settings = {
            "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "presence_penalty": 0.1,
            "frequency_penalty": 0.2, "logit_bias": {"5": -100}, "stop_sequences": ["."], "parallel_tool_calls": False,
            "timeout": 3, "openai_user": "me", "offgrid_llama_min_p": 0.1, "offgrid_llama_lookup": False,
        }  # fmt: skip
        assert options_of(settings, ModelRequestParameters()) == {
            "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "presence_penalty": 0.1,
            "frequency_penalty": 0.2, "logit_bias": {"5": -100}, "stop": ["."], "parallel_tool_calls": False,
            "min_p": 0.1, "lookup": False,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("thinking", "budget", "variables"),
        [
            (None, None, {"a": 1}),
            (False, 0, {"enable_thinking": False, "reasoning_effort": "none", "a": 1}),
            (True, None, {"enable_thinking": True, "a": 1}),
            ("xhigh", None, {"enable_thinking": True, "reasoning_effort": "high", "a": 1}),
        ],
    )
    def test_thinking(self, thinking: Any, budget: int | None, variables: dict[str, Any]) -> None:
        """It is a budget, and variables that templates know."""
        options = options_of({"offgrid_llama_variables": {"a": 1}}, ModelRequestParameters(thinking=thinking))
        assert (options.get("reasoning_budget"), options["variables"]) == (budget, variables)

    @pytest.mark.parametrize(
        ("choice", "text", "asked", "names"),
        [
            (None, True, "auto", ["a", "b", "out"]),
            ("auto", False, "required", ["a", "b", "out"]),
            ("none", True, "auto", ["out"]),
            ([], False, "out", ["a", "b", "out"]),
            ("required", True, "required", ["a", "b"]),
            (["b"], True, "b", ["a", "b", "out"]),
            (["b", "out"], True, "required", ["b", "out"]),
            (["b", "gone"], True, "b", ["a", "b", "out"]),
            (ToolOrOutput(["a"]), False, "required", ["a", "out"]),
            (ToolOrOutput([]), True, "auto", ["out"]),
        ],
    )
    def test_tool_choice(self, choice: Any, text: bool, asked: str, names: list[str]) -> None:
        """Each choice lets the model call what Pydantic AI says that it does."""
        params = ModelRequestParameters(
            function_tools=[tool("a"), tool("b")], output_tools=[tool("out")], allow_text_output=text
        )
        options = options_of({"tool_choice": choice}, params)
        assert options["tool_choice"] == asked
        assert [each["function"]["name"] for each in options["tools"]] == names
        assert options.get("parallel_tool_calls") is (
            False if choice in ("none", []) or choice == ToolOrOutput([]) else None
        )

    def test_tool_choices_that_fit_nothing(self) -> None:
        """They are errors that name the setting; no tools need no choice."""
        only = ModelRequestParameters(output_tools=[tool("out")])
        for choice in ("required", ["gone"]):
            with pytest.raises(UserError, match=r"tool_choice.*out"):
                options_of({"tool_choice": choice}, only)
        with pytest.raises(UserError, match="tool_choice"):
            options_of({"tool_choice": ToolOrOutput(["gone"])}, ModelRequestParameters(function_tools=[tool("a")]))
        with pytest.raises(UserError, match="offgrid_llama_n"):
            options_of({"offgrid_llama_n": 2}, only)
        assert options_of({"tool_choice": "none"}, ModelRequestParameters(function_tools=[tool("a")])) == {}
        assert options_of({}, ModelRequestParameters()) == {}


class TestTheModelItself:
    """What needs no engine."""

    def test_it_is_compared_copied_and_shown(self) -> None:
        """Models with one name and the same settings are equal; a name and a path can be pickled."""
        again = pickle.loads(pickle.dumps(MODEL))
        assert again == MODEL == OffgridLlamaModel(NAME, settings=GREEDY)
        assert OffgridLlamaModel(NAME) != MODEL
        assert NAME in repr(MODEL)
        assert (MODEL.model_name, MODEL.system, MODEL.model_id) == (NAME, "offgrid-llama", f"offgrid-llama:{NAME}")
        with pytest.raises(ValueError, match="model: Engine"):
            OffgridLlamaModel(3)

    def test_profiles(self) -> None:
        """A user's profile, or function, changes the usual one."""
        assert OffgridLlamaModel(NAME).profile["supports_json_schema_output"]
        assert not OffgridLlamaModel(NAME, profile={"supports_tools": False}).profile["supports_tools"]
        changed = OffgridLlamaModel(NAME, profile=lambda usual: {**usual, "context_window": 7})
        assert changed.context_window == 7
        assert changed.profile["supports_json_schema_output"]

    async def test_requests_can_be_forbidden(self) -> None:
        """As with other models that take their time."""
        with override_allow_model_requests(False), pytest.raises(RuntimeError, match="ALLOW_MODEL_REQUESTS"):
            await Agent(MODEL).run("Hi")
