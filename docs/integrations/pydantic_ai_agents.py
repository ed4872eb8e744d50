"""What Pydantic AI's agents do with our models: texts, outputs of a type, tools. They have no standard tests for models.

PYTHONPATH=tests python -m pytest -c /dev/null --rootdir . -o anyio_mode=auto docs/integrations/pydantic_ai_agents.py
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import (
    Agent,
    BinaryContent,
    ImageUrl,
    ModelRetry,
    NativeOutput,
    PromptedOutput,
    RunContext,
    ToolOutput,
)
from pydantic_ai.direct import model_request_sync
from pydantic_ai.exceptions import (
    IncompleteToolCall,
    UnexpectedModelBehavior,
    UserError,
)
from pydantic_ai.messages import (
    ModelMessagesTypeAdapter,
    ModelRequest,
    SystemPromptPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters

import offgrid_llama as og
from offgrid_llama.integrations.engines import shared_engine
from offgrid_llama.integrations.pydantic_ai import (
    OffgridLlamaModel,
    OffgridLlamaModelSettings,
)

NAME = "smollm2-135m-instruct"
GREEDY = OffgridLlamaModelSettings(temperature=0, max_tokens=200)
MODEL = OffgridLlamaModel(NAME, settings=GREEDY)
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


def parts_of(result: Any, kind: str) -> list[Any]:
    return [part for message in result.all_messages() for part in message.parts if part.part_kind == kind]


def once(choice: Any) -> Any:
    """Return settings with a tool choice for the first request of a run, and none for the others."""
    return lambda context: {"tool_choice": choice if context.run_step == 1 else "none"}


async def idle(engine: og.Engine) -> None:
    """Wait until nothing runs, to the time limit if something goes on."""
    while engine.stats().n_running:
        await asyncio.sleep(0.01)


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
    async def test_rules_that_no_grammar_holds(self, mode: Any) -> None:
        """They are Pydantic's."""

        class Colors(BaseModel):
            """Colors."""

            names: set[Literal["red", "blue"]] = Field(min_length=1, max_length=3)

        result = await Agent(MODEL, output_type=mode(Colors)).run("Which colors?")
        assert result.output.names <= {"red", "blue"}

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
