"""What ends a run of Pydantic AI's agents before its time: cancels, limits, failures. And its embedder.

PYTHONPATH=tests python -m pytest -c /dev/null --rootdir . -o anyio_mode=auto docs/integrations/pydantic_ai_ends.py
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from pydantic_ai import (
    Agent,
    DeferredToolRequests,
    DeferredToolResults,
    Embedder,
)
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.exceptions import (
    FallbackExceptionGroup,
    ModelAPIError,
    ModelContextWindowExceededError,
    ModelNotFoundError,
    ModelRequestTimeout,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import (
    ModelRequest,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.instrumented import InstrumentedModel
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

NAME = "smollm2-135m-instruct"
GREEDY = OffgridLlamaModelSettings(temperature=0, max_tokens=200)
MODEL = OffgridLlamaModel(NAME, settings=GREEDY)
ENDLESS = OffgridLlamaModelSettings(offgrid_llama_ignore_eos=True, max_tokens=100_000)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """An engine speaks asyncio."""
    return "asyncio"


def tool(name: str, **properties: Any) -> ToolDefinition:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return ToolDefinition(name=name, parameters_json_schema=schema, description=f"The {name}")


async def idle(engine: og.Engine) -> None:
    """Wait until nothing runs, to the time limit if something goes on."""
    while engine.stats().n_running:
        await asyncio.sleep(0.01)


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

    async def test_a_stream_whose_engine_is_closed(self) -> None:
        """It ends, and its response says that it is not whole."""
        with og.Engine(NAME, n_ctx=512, n_seq_max=2) as engine:
            request: list[Any] = [ModelRequest([UserPromptPart("Count.")])]
            endless = {**ENDLESS, "offgrid_llama_n_keep": 8}
            async with model_request_stream(OffgridLlamaModel(engine), request, model_settings=endless) as stream:
                events = aiter(stream)
                await anext(events)
                await asyncio.to_thread(engine.close)
                assert [event async for event in events]
            assert stream.get().state == "incomplete"

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

    async def test_approvals(self) -> None:
        """A call that a person must allow ends the run, and another one goes on with it."""

        def choice(context: Any) -> dict[str, Any]:
            is_first = context.messages[-1].parts[0].part_kind == "user-prompt"
            return {"tool_choice": ["remove"] if is_first else "none", "parallel_tool_calls": False}

        agent = Agent(MODEL, output_type=[str, DeferredToolRequests], model_settings=choice)

        @agent.tool_plain(requires_approval=True)  # type: ignore[untyped-decorator]
        def remove(path: Literal["/a", "/b"]) -> str:
            """Remove a file."""
            return f"removed {path}"

        asked = (await agent.run("Remove /a.")).all_messages()
        (call,) = asked[-1].parts
        allowed = DeferredToolResults(approvals={call.tool_call_id: True})
        result = await agent.run(message_history=asked, deferred_tool_results=allowed)
        assert f"removed {call.args_as_dict()['path']}" in str(result.all_messages())
        assert isinstance(result.output, str)

    async def test_it_is_instrumented(self) -> None:
        """Tracers find what they ask for."""
        assert (await Agent(InstrumentedModel(MODEL), model_settings={"max_tokens": 4}).run("Hi")).output


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
