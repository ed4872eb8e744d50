"""openai-agents against a server: an agent with a function, and streamed. python docs/clients/with_openai_agents.py [URL]"""

from __future__ import annotations

import asyncio
import sys

import agents
import openai
from pydantic import BaseModel, Field

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"
model = "tinyllama-1.1b-chat.Q4_K_M"
asked: list[str] = []


def weather(city: str) -> str:
    """Return the weather of a city."""
    asked.append(city)
    return "It rains."


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)


async def main() -> None:
    agents.set_tracing_disabled(True)  # tracing would send what agents do to OpenAI
    agents.set_default_openai_client(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none"))
    settings = agents.ModelSettings(temperature=0, max_tokens=512)
    calling = agents.ModelSettings(temperature=0, max_tokens=512, tool_choice="weather", parallel_tool_calls=False)
    agent = agents.Agent(
        name="Weather",
        instructions="Be brief.",
        model=model,
        tools=[agents.function_tool(weather)],
        model_settings=calling,
    )  # after a call, the choice of a tool is free again

    answer = await agents.Runner.run(agent, "How is the weather in Bern?")
    assert len(asked) == 1
    assert answer.final_output
    kinds = [item.type for item in answer.new_items]
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"]

    stream = agents.Runner.run_streamed(agent, "How is the weather in Bern?")
    events = [event async for event in stream.stream_events()]
    deltas = [event.data.type for event in events if event.type == "raw_response_event"]
    assert "response.function_call_arguments.delta" in deltas
    assert "response.output_text.delta" in deltas
    assert len(asked) == 2
    assert stream.final_output

    # The server keeps the conversation: only what is new is sent.
    chatting = agents.Agent(name="Chat", model=model, model_settings=settings)
    first = await agents.Runner.run(chatting, "My name is Ada.")
    second = await agents.Runner.run(chatting, "What is my name?", previous_response_id=first.last_response_id)
    assert second.final_output
    assert second.context_wrapper.usage.input_tokens > first.context_wrapper.usage.total_tokens

    typed = agents.Agent(name="Cities", model=model, output_type=City, model_settings=settings)
    city = await agents.Runner.run(typed, "Name a city.")
    assert isinstance(city.final_output, City)
    print(asked, "|", answer.final_output, "|", second.final_output, "|", city.final_output)


asyncio.run(main())
