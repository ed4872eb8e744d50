"""openai's Responses API against a server. python docs/clients/with_openai_responses.py [URL]

Answers, streams, a tool and its result, an answer as a Pydantic model, reasoning; conversations that the server keeps:
retrieved, listed, followed again from the middle of a stream, cancelled, deleted.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import openai
from pydantic import BaseModel, Field

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
options: Any = {"model": "tinyllama-1.1b-chat.Q4_K_M", "max_output_tokens": 64, "temperature": 0}


class Person(BaseModel):
    """A person in a text."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def is_gone(response_id: str) -> bool:
    """Return whether the server has no such response."""
    try:
        client.responses.retrieve(response_id)
    except openai.NotFoundError:
        return True
    return False


# An answer, a stream, and the stream again from its middle.
answer = client.responses.create(input="What is 2+2?", metadata={"of": "the example"}, **options)
assert answer.status == "completed"
assert answer.output_text
assert answer.usage
assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
with client.responses.stream(input="What is 2+2?", **options) as stream:
    text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == stream.get_final_response().output_text == answer.output_text
events: list[Any] = list(client.responses.create(input="What is 2+2?", stream=True, background=True, **options))
assert [event.sequence_number for event in events] == [*range(len(events))]
again: list[Any] = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=3))
assert [event.sequence_number for event in again] == [*range(4, len(events))]
assert again[-1].response.output_text == text

# A call of a tool; then its result, to a conversation that the server keeps.
schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
function: Any = {"type": "function", "name": "weather", "parameters": schema, "strict": False}
events = list(
    client.responses.create(
        input="How is the weather in Bern?",
        tools=[function],
        tool_choice="required",
        parallel_tool_calls=False,
        stream=True,
        **options,
    )
)
assert [event.sequence_number for event in events] == [*range(len(events))]
first = events[-1].response
[item] = first.output
assert item.type == "function_call"
assert list(json.loads(item.arguments)) == ["city"]
deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
assert "".join(deltas) == item.arguments
result: Any = {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
second = client.responses.create(input=[result], previous_response_id=first.id, **options)
assert second.output_text
assert client.responses.retrieve(second.id).output_text == second.output_text
kinds = [each.type for each in client.responses.input_items.list(second.id, order="asc", limit=2)]  # two pages
assert kinds == ["message", "function_call", "function_call_output"]

parsed = client.responses.parse(input="Jason is 25 years old.", text_format=Person, **options)
assert isinstance(parsed.output_parsed, Person)
thought = client.responses.create(input="What is 2+2?", reasoning={"effort": "low"}, **{**options, "model": "thinker"})
assert thought.output[0].type == "reasoning"

# A response that is deleted, or was not stored, is not there; one in the background ends when it is cancelled.
client.responses.delete(second.id)
assert is_gone(second.id)
assert is_gone(client.responses.create(input="What is 2+2?", store=False, **options).id)
long: Any = {**options, "max_output_tokens": 1500, "extra_body": {"ignore_eos": True}}  # it does not end by itself
running = client.responses.create(input="Tell me a long story.", background=True, **long)
assert running.status in {"queued", "in_progress"}
while client.responses.retrieve(running.id).status == "queued":
    time.sleep(0.05)
assert client.responses.cancel(running.id).status == "cancelled"
assert client.responses.retrieve(running.id).status == "cancelled"
counted = client.post(
    "/responses/input_tokens", body={"model": options["model"], "input": "What is 2+2?"}, cast_to=object
)
assert counted == {"object": "response.input_tokens", "input_tokens": answer.usage.input_tokens}
print(openai.__version__, answer.output_text, item.arguments, second.output_text, repr(parsed.output_parsed))
