"""What Pydantic AI's agents and embedder do with our models; Pydantic AI has no standard tests of its own for models.

PYTHONPATH=tests python -m pytest -c /dev/null --rootdir . -o anyio_mode=auto docs/integrations/pydantic_ai_checks.py
"""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import (
    Agent,
    BinaryContent,
    Embedder,
    ImageUrl,
    ModelRetry,
    NativeOutput,
    PromptedOutput,
    RunContext,
    ToolOutput,
)
from pydantic_ai.direct import model_request, model_request_stream, model_request_sync
from pydantic_ai.exceptions import (
    FallbackExceptionGroup,
    IncompleteToolCall,
    ModelAPIError,
    ModelContextWindowExceededError,
    ModelNotFoundError,
    ModelRequestTimeout,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import (
    CachePoint,
    CompactionPart,
    ModelMessagesTypeAdapter,
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
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.settings import ToolOrOutput
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import UsageLimits

import offgrid_llama as og
from helpers import minilm
from offgrid_llama.integrations.engines import shared_engine
from offgrid_llama.integrations.pydantic_ai import (
    OffgridLlamaEmbeddingModel,
    OffgridLlamaModel,
    OffgridLlamaModelSettings,
)
from offgrid_llama.integrations.pydantic_ai_messages import instructions_of, messages_of
from offgrid_llama.integrations.pydantic_ai_options import options_of

NAME = "smollm2-135m-instruct"
GREEDY = OffgridLlamaModelSettings(temperature=0, max_tokens=200)
MODEL = OffgridLlamaModel(NAME, settings=GREEDY)
ENDLESS = OffgridLlamaModelSettings(offgrid_llama_ignore_eos=True, max_tokens=100_000)
REASONS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""A template after which a model thinks."""


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20, description="The first name")
    age: int = Field(ge=0, le=120)


class City(BaseModel):
    """A city."""

    city: Literal["Bern", "Oslo"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """An engine speaks asyncio."""
    return "asyncio"


def tool(name: str, **properties: Any) -> ToolDefinition:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return ToolDefinition(name=name, parameters_json_schema=schema, description=f"The {name}")


def parts_of(result: Any, kind: str) -> list[Any]:
    return [part for message in result.all_messages() for part in message.parts if part.part_kind == kind]


def once(choice: Any) -> Any:
    """Return settings with a tool choice for the first request of a run, and none for the others."""
    return lambda context: {"tool_choice": choice if context.run_step == 1 else "none"}


async def idle(engine: og.Engine) -> None:
    """Wait until nothing runs, to the time limit if something goes on."""
    while engine.stats().n_running:
        await asyncio.sleep(0.01)


# Messages and options, without a model ------------------------------------------------------------------------------------


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
        "image", [ImageUrl("https://example.com/a.png"), BinaryContent(b"\x89PNG", media_type="image/png")]
    )
    def test_pictures_are_refused(self, image: Any) -> None:
        """The error names the place, and the kind."""
        with pytest.raises(UserError, match=r"messages\[0\]\.parts\[0\]\.content\[1\]: .* no (ImageUrl|Binary)"):
            messages_of([ModelRequest([UserPromptPart(["What is this?", image])])])
        with pytest.raises(UserError, match=r"messages\[0\]\.parts\[0\]\.content: "):
            messages_of([ModelRequest([ToolReturnPart("look", ["seen", image], "1")])])

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


# Agents -------------------------------------------------------------------------------------------------------------------


class TestText:
    """Answers that are text."""

    async def test_usage_and_reasons(self) -> None:
        """The response names the model, counts tokens, and says why it has ended."""
        agent = Agent(MODEL, system_prompt="You are terse.")
        for _ in range(2):
            result = await agent.run("What is 2+2?", model_settings={"max_tokens": 5})
        response = result.response
        assert (response.model_name, response.provider_name) == (NAME, "offgrid-llama")
        assert (response.finish_reason, response.provider_details) == ("length", {"finish_reason": "length"})
        assert response.usage.output_tokens == 5
        assert response.usage.input_tokens > response.usage.cache_read_tokens > 10
        counted = await MODEL.count_tokens(result.all_messages()[:-1], None, ModelRequestParameters())
        assert counted.input_tokens == response.usage.input_tokens
        read = ModelMessagesTypeAdapter.validate_json(result.all_messages_json())
        assert read == result.all_messages()

    async def test_settings_count(self) -> None:
        """Seeds, stop strings, biases, and settings of the run before those of the model."""
        agent = Agent(OffgridLlamaModel(NAME, settings={"temperature": 2.0, "max_tokens": 20}))
        seeded = [(await agent.run("Tell a story.", model_settings={"seed": seed})).output for seed in (1, 1, 2)]
        assert seeded[0] == seeded[1] != seeded[2]
        greedy = Agent(MODEL)
        plain = (await greedy.run("Count to ten.", model_settings={"max_tokens": 30})).output
        word = plain.split()[2]
        stopped = (
            await greedy.run("Count to ten.", model_settings={"max_tokens": 30, "stop_sequences": [word]})
        ).output
        assert word not in stopped
        first = shared_engine(NAME).model.vocab.tokenize(plain, add_special=False)[0]
        biased = await greedy.run("Count to ten.", model_settings={"max_tokens": 30, "logit_bias": {str(first): -100}})
        assert biased.output != plain

    async def test_wrong_settings_are_told(self) -> None:
        """One that is out of range, or unknown, is an error that names it; one that the model cannot heed a warning."""
        agent = Agent(MODEL)
        with pytest.raises(ValueError, match="temperature"):
            await agent.run("Hi", model_settings={"temperature": -1})
        with pytest.raises(TypeError, match="min_q"):
            await agent.run("Hi", model_settings=OffgridLlamaModelSettings(offgrid_llama_min_q=1))
        with pytest.warns(UserWarning, match="timeout"):
            await agent.run("Hi", model_settings={"timeout": 3, "max_tokens": 1})

    async def test_histories(self) -> None:
        """A run goes on from another's messages; system prompts may come in between; a prompt may be empty."""
        agent = Agent(MODEL, instructions="You are terse.", model_settings={"max_tokens": 8})
        first = await agent.run("What is 2+2?")
        second = await agent.run("And 3+3?", message_history=first.all_messages())
        assert second.response.usage.input_tokens > first.response.usage.input_tokens
        later = ModelRequest([SystemPromptPart("Answer in French."), UserPromptPart("Why?")])
        assert (await agent.run("Go on.", message_history=[*second.all_messages(), later])).output
        for prompt in ("", None, ["a", "b"]):
            await agent.run(prompt)

    async def test_reasoning(self) -> None:
        """It is a ThinkingPart, in streams, too, and goes back into the next prompt."""
        settings = OffgridLlamaModelSettings(
            offgrid_llama_template=REASONS, offgrid_llama_reasoning_budget=8, max_tokens=24, temperature=0
        )
        agent = Agent(OffgridLlamaModel(NAME, settings=settings))
        result = await agent.run("What is 2+2?")
        assert result.response.thinking
        assert 0 < result.response.usage.details["reasoning_tokens"] <= 12
        async with agent.run_stream("What is 2+2?") as stream:
            assert await stream.get_output() == result.output
        assert stream.response.thinking == result.response.thinking
        assert stream.response.usage.details == result.response.usage.details
        off = await agent.run("What is 2+2?", model_settings={"thinking": False})
        assert off.response.thinking  # the budget of 8 is the user's own word
        again = await agent.run("Why?", message_history=result.all_messages())
        longer = result.response.usage.input_tokens + result.response.usage.output_tokens
        assert again.response.usage.input_tokens > longer

    async def test_thinking_is_switched_off(self) -> None:
        """With ``thinking=False`` a template that makes a model think is answered without."""
        model = OffgridLlamaModel(
            NAME, settings=OffgridLlamaModelSettings(offgrid_llama_template=REASONS, temperature=0)
        )
        result = await Agent(model).run("What is 2+2?", model_settings={"thinking": False, "max_tokens": 20})
        assert not result.response.thinking
        assert result.output

    def test_synchronously_in_threads(self) -> None:
        """``run_sync`` of several threads, and ``run_stream_sync``."""
        agent = Agent(MODEL, model_settings={"max_tokens": 8})
        with ThreadPoolExecutor(4) as pool:
            answers = [*pool.map(lambda n: agent.run_sync(f"What is {n}+{n}?").output, range(8))]
        assert all(answers)
        assert "".join(agent.run_stream_sync("Hi").stream_text(delta=True, debounce_by=None))
        request: list[Any] = [ModelRequest([UserPromptPart("Hi")])]
        assert model_request_sync(MODEL, request, model_settings={"max_tokens": 4}).text

    async def test_many_at_once(self) -> None:
        """They share the steps of one engine, and it is idle after them."""
        agent = Agent(MODEL, model_settings={"max_tokens": 16})
        alone = (await agent.run("What is 3+3?")).output
        answers = await asyncio.gather(*(agent.run(f"What is {n % 4}+{n % 4}?") for n in range(24)))
        assert all(answer.output for answer in answers)
        assert sum(answer.output == alone for answer in answers) >= 1
        await idle(shared_engine(NAME))


class TestOutputs:
    """Answers of a type."""

    @pytest.mark.parametrize("mode", [NativeOutput, ToolOutput, PromptedOutput])
    async def test_each_mode(self, mode: Any) -> None:
        """The answer is of the type, whole and in a stream."""
        agent = Agent(MODEL, output_type=mode(Person))
        result = await agent.run("Jason is 25.")
        assert isinstance(result.output, Person)
        async with agent.run_stream("Jason is 25.") as stream:
            people = [person async for person in stream.stream_output(debounce_by=None)]
        assert people[-1] == result.output
        assert stream.is_complete

    @pytest.mark.parametrize("mode", [NativeOutput, ToolOutput, PromptedOutput])
    async def test_without_the_schema_in_the_prompt(self, mode: Any) -> None:
        """The grammar holds it alone."""
        model = OffgridLlamaModel(
            NAME,
            settings=GREEDY,
            profile={
                "native_output_requires_schema_in_instructions": False,
                "prompted_output_template": "JSON. {schema}",
            },
        )
        assert isinstance((await Agent(model, output_type=mode(Person)).run("Jason is 25.")).output, Person)

    async def test_several_types(self) -> None:
        """A union is one of its types; so are scalars, lists and functions."""
        for output in ([Person, City], NativeOutput([Person, City]), PromptedOutput([Person, City])):
            assert isinstance((await Agent(MODEL, output_type=output).run("Bern is a city.")).output, (Person, City))
        assert (await Agent(MODEL, output_type=Literal["yes", "no"]).run("Is snow white?")).output in ("yes", "no")
        assert isinstance((await Agent(MODEL, output_type=NativeOutput(bool)).run("Is snow white?")).output, bool)

        def shout(word: Literal["yes", "no"]) -> str:
            """Say a word loudly."""
            return word.upper()

        assert (await Agent(MODEL, output_type=shout).run("Is snow white?")).output in ("YES", "NO")
        assert (await Agent(MODEL, output_type=[str, shout]).run("Is snow white?")).output

    @pytest.mark.parametrize("mode", [NativeOutput, ToolOutput, PromptedOutput])
    async def test_a_retry(self, mode: Any) -> None:
        """A validator that refuses has the model asked again, with the reason."""
        agent = Agent(MODEL, output_type=mode(City), retries=3)
        tries = []

        @agent.output_validator  # type: ignore[untyped-decorator]
        def refuse(value: City) -> City:
            tries.append(value)
            if len(tries) < 3:
                raise ModelRetry("Think again.")
            return value

        result = await agent.run("Bern or Oslo?")
        assert len(tries) == 3
        assert result.usage.requests == 3

    async def test_an_answer_that_is_cut_off(self) -> None:
        """A call whose arguments end too early is told as such, in streams, too."""
        agent = Agent(MODEL, output_type=ToolOutput(Person), model_settings={"max_tokens": 20})
        with pytest.raises(IncompleteToolCall):
            await agent.run("Jason is 25.")
        with pytest.raises(UnexpectedModelBehavior):
            async with agent.run_stream("Jason is 25.") as stream:
                await stream.get_output()


class TestTools:
    """Functions that the model calls."""

    async def test_a_call_and_its_result(self) -> None:
        """A call has arguments that fit, and its result is in the next prompt."""
        agent = Agent(MODEL, model_settings=once(["weather"]))

        @agent.tool_plain  # type: ignore[untyped-decorator]
        def weather(city: Literal["Bern", "Oslo"]) -> dict[str, str]:
            """Return the weather."""
            return {"city": city, "sky": "grey"}

        result = await agent.run("How is the weather in Bern?", model_settings={"parallel_tool_calls": False})
        (call,), (returned,) = parts_of(result, "tool-call"), parts_of(result, "tool-return")
        assert returned.content == {"city": call.args_as_dict()["city"], "sky": "grey"}
        assert result.output
        asked = await MODEL.count_tokens(result.all_messages()[:1], None, ModelRequestParameters())
        assert result.response.usage.input_tokens > asked.input_tokens + 20
        assert result.all_messages()[1].finish_reason == "tool_call"

    async def test_no_arguments_and_several_calls(self) -> None:
        """A tool without arguments is called with none; one answer may have several calls."""
        agent = Agent(MODEL, model_settings=once("required"))
        called = []

        @agent.tool_plain  # type: ignore[untyped-decorator]
        def now() -> str:
            """Return the time."""
            called.append(1)
            return "12:00"

        settings = OffgridLlamaModelSettings(max_tokens=120)
        result = await agent.run("What time is it?", model_settings=settings)
        calls = parts_of(result, "tool-call")
        assert len(called) >= 1
        whole = [call for call in calls if call.args == "{}"]
        assert len(whole) >= len(calls) - 1
        assert len({call.tool_call_id for call in calls}) == len(calls)

    async def test_a_retry(self) -> None:
        """What a tool asks for again is told to the model."""
        agent = Agent(
            MODEL, model_settings=lambda context: {"tool_choice": ["dice"] if context.run_step < 3 else "none"}
        )

        @agent.tool  # type: ignore[untyped-decorator]
        def dice(context: RunContext[None], sides: Literal[6, 20]) -> int:
            """Throw a dice."""
            if not context.retry:
                raise ModelRetry("It fell from the table.")
            return sides

        result = await agent.run("Throw!", model_settings={"parallel_tool_calls": False})
        retried, thrown = parts_of(result, "tool-return")
        assert "fell from the table" in str(retried.content)
        assert thrown.content in (6, 20)

    async def test_with_an_output(self) -> None:
        """Functions and each kind of output go together."""
        for output in (NativeOutput(City), ToolOutput(City), PromptedOutput(City)):
            agent = Agent(MODEL, output_type=output, model_settings=once(["now"]))

            @agent.tool_plain  # type: ignore[untyped-decorator]
            def now(zone: Literal["local"]) -> str:
                """Return the time."""
                return "12:00 " + zone

            result = await agent.run("Where is it noon?")
            assert isinstance(result.output, City)
            assert parts_of(result, "tool-return")[0].content == "12:00 local"

    async def test_a_picture_that_a_tool_returns(self) -> None:
        """The model is told that there was one; in a prompt it is an error."""
        agent = Agent(MODEL, model_settings=once(["look"]))

        @agent.tool_plain  # type: ignore[untyped-decorator]
        def look(at: Literal["sky"]) -> list[Any]:
            """Look."""
            return [at, BinaryContent(b"\x89PNG", media_type="image/png")]

        assert (await agent.run("Look!", model_settings={"parallel_tool_calls": False})).output
        with pytest.raises(UserError, match=r"messages\[0\]\.parts\[0\]\.content\[1\]"):
            await agent.run(["What is this?", ImageUrl("https://example.com/a.png")])

    async def test_a_stream_with_calls(self) -> None:
        """``iter`` and events: the parts of a streamed call are those of a whole one."""
        agent = Agent(MODEL, model_settings=once(["weather"]))

        @agent.tool_plain  # type: ignore[untyped-decorator]
        def weather(city: Literal["Bern"]) -> str:
            """Return the weather."""
            return f"grey in {city}"

        kinds = []

        async def listen(_: Any, events: AsyncIterator[Any]) -> None:
            kinds.extend([event.event_kind async for event in events])

        result = await agent.run(
            "How is the weather?", event_stream_handler=listen, model_settings={"parallel_tool_calls": False}
        )
        (call,) = parts_of(result, "tool-call")
        assert json.loads(call.args) == {"city": "Bern"}
        assert {"part_start", "part_delta", "function_tool_call", "function_tool_result"} <= {*kinds}


class TestEnds:
    """What is given up, what fails, and limits."""

    async def test_what_is_given_up_is_cancelled(self) -> None:
        """A task that is cancelled, a stream that is cancelled or left, and a deadline, leave nothing running."""
        agent, engine = Agent(MODEL, model_settings=ENDLESS), shared_engine(NAME)
        task = asyncio.ensure_future(agent.run("Count."))
        while not engine.stats().n_running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(engine)

        async with agent.run_stream("Count.") as stream:
            async for _ in stream.stream_text(delta=True, debounce_by=None):
                await stream.cancel()
                break
        await idle(engine)
        assert stream.response.state == "interrupted"

        async with agent.run_stream("Count.") as stream:
            async for _ in stream.stream_text(delta=True, debounce_by=None):
                break
        await idle(engine)

        async with model_request_stream(MODEL, [ModelRequest([UserPromptPart("Hi")])], model_settings=ENDLESS) as raw:
            await anext(aiter(raw))
        await idle(engine)

        with pytest.raises(ModelRequestTimeout):
            await agent.run("Count.", model_settings={**ENDLESS, "request_timeout": 0.3})
        await idle(engine)

    async def test_limits(self) -> None:
        """Usage limits hold, before a request where tokens are counted."""
        agent = Agent(MODEL, model_settings={"max_tokens": 8})
        with pytest.raises(UsageLimitExceeded, match="output_tokens"):
            await agent.run("Count.", usage_limits=UsageLimits(output_tokens_limit=3))
        limits = UsageLimits(input_tokens_limit=5, count_tokens_before_request=True)
        with pytest.raises(UsageLimitExceeded, match="input_tokens"):
            await agent.run("Count.", usage_limits=limits)

    async def test_failures(self) -> None:
        """They are Pydantic AI's errors, and a FallbackModel asks the next model."""
        gone = OffgridLlamaModel("no-such-model")
        with pytest.raises(ModelNotFoundError, match="no-such-model"):
            await Agent(gone).run("Hi")
        with pytest.raises(ModelContextWindowExceededError):
            await Agent(MODEL).run("word " * 20_000)
        assert (await Agent(FallbackModel(gone, MODEL), model_settings={"max_tokens": 4}).run("Hi")).output
        async with Agent(FallbackModel(gone, MODEL), model_settings={"max_tokens": 4}).run_stream("Hi") as stream:
            assert await stream.get_output()
        with pytest.raises(FallbackExceptionGroup):
            await Agent(FallbackModel(gone, gone)).run("Hi")

    async def test_an_engine_of_ones_own(self) -> None:
        """It may be given; when it is closed, what runs fails, and so does what comes."""
        with og.Engine(NAME, n_ctx=512, n_seq_max=2) as engine:
            model = OffgridLlamaModel(engine)
            assert model.context_window == engine.n_ctx_seq
            assert model.model_name.endswith(".gguf")
            agent = Agent(model, model_settings={"max_tokens": 4})
            assert (await agent.run("Hi")).output
            endless = asyncio.ensure_future(agent.run("Count.", model_settings={**ENDLESS, "offgrid_llama_n_keep": 8}))
            while not engine.stats().n_running:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(engine.close)
            with pytest.raises(ModelAPIError):
                await endless
        with pytest.raises(ModelAPIError, match="closed"):
            await agent.run("Hi")

    async def test_direct_requests(self) -> None:
        """Without an agent, with tools and a choice."""
        request: list[Any] = [ModelRequest([UserPromptPart("How is Bern?")], instructions="Call.")]
        params = ModelRequestParameters(
            function_tools=[tool("weather", city={"enum": ["Bern"]})], allow_text_output=False
        )
        response = await model_request(MODEL, request, model_request_parameters=params)
        assert response.parts[0].tool_name == "weather"
        strict = ModelRequestParameters(
            function_tools=[
                ToolDefinition(
                    name="weather", parameters_json_schema=params.function_tools[0].parameters_json_schema, strict=True
                )
            ]
        )
        forced = await model_request(
            MODEL, request, model_settings={"tool_choice": "required"}, model_request_parameters=strict
        )
        assert forced.parts[0].args_as_dict() == {"city": "Bern"}

    async def test_it_is_instrumented(self) -> None:
        """Tracers find what they ask for."""
        assert (await Agent(InstrumentedModel(MODEL), model_settings={"max_tokens": 4}).run("Hi")).output


# Embeddings ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path() -> str:
    """A sentence model."""
    return str(minilm.path())


class TestEmbeddings:
    """Vectors of texts."""

    async def test_vectors(self, path: str) -> None:
        """Each has the length 1; prefixes are those of the kinds; tokens are counted."""
        plain = Embedder(OffgridLlamaEmbeddingModel(path))
        marked = Embedder(OffgridLlamaEmbeddingModel(path, query_prefix="query: ", document_prefix="passage: "))
        found = await marked.embed_query("a cat")
        wanted = await plain.embed_documents(["query: a cat", "passage: a cat"])
        assert found.embeddings[0] == pytest.approx(wanted.embeddings[0], abs=1e-4)
        assert sum(value * value for value in found["a cat"]) == pytest.approx(1, abs=1e-3)
        assert (await marked.embed_documents("a cat")).embeddings[0] == pytest.approx(wanted.embeddings[1], abs=1e-4)
        assert (found.model_name, found.provider_name) == (path, "offgrid-llama")
        assert found.usage.input_tokens == await plain.count_tokens("query: a cat")

    def test_synchronously(self, path: str) -> None:
        """Without a loop of one's own."""
        assert Embedder(OffgridLlamaEmbeddingModel(path)).embed_query_sync("a cat").inputs == ["a cat"]

    async def test_settings(self, path: str) -> None:
        """A text that is too long is an error, or cut where that is asked for; vectors may be shorter."""
        embedder = Embedder(OffgridLlamaEmbeddingModel(path))
        most = await embedder.max_input_tokens()
        with pytest.raises(ModelContextWindowExceededError):
            await embedder.embed_query("cat " * 600)
        cut = await embedder.embed_query("cat " * 600, settings={"truncate": True})
        assert cut.usage.input_tokens == most
        short = await embedder.embed_query("a cat", settings={"dimensions": 8})
        assert len(short.embeddings[0]) == 8
        assert sum(value * value for value in short.embeddings[0]) == pytest.approx(1, abs=1e-3)
        with pytest.raises(UserError, match="dimensions"):
            await embedder.embed_query("a cat", settings={"dimensions": 100_000})
        with pytest.raises(ValueError, match="tokens"):
            await Embedder(OffgridLlamaEmbeddingModel(NAME)).embed_query("")
        assert (await embedder.embed_documents([])).embeddings == []

    async def test_an_embedder_of_ones_own(self, path: str) -> None:
        """It may be given."""
        with og.Model(path) as model, og.Embedder(model) as own:
            assert (
                len((await Embedder(OffgridLlamaEmbeddingModel(own)).embed_query("a cat")).embeddings[0]) == own.n_embd
            )
        assert OffgridLlamaEmbeddingModel(path) == OffgridLlamaEmbeddingModel(path)
