"""anthropic against a server: answers, streams, a tool, thinking, tokens. python docs/clients/with_anthropic.py [URL]"""

from __future__ import annotations

import sys
from typing import Any

import anthropic

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"
client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
# temperature is a parameter of the older versions only.
options: Any = {"model": "tinyllama-1.1b-chat.Q4_K_M", "max_tokens": 48, "extra_body": {"temperature": 0}}
block: Any = {"type": "text", "text": "What is 2+2?", "cache_control": {"type": "ephemeral"}}
question: Any = {**options, "messages": [{"role": "user", "content": [block]}]}

answer = client.messages.create(**question)
[said] = answer.content
assert said.type == "text"
assert answer.stop_reason == "end_turn"
with client.messages.stream(**question) as stream:
    assert "".join(stream.text_stream) == said.text
    usage = stream.get_final_message().usage
assert usage.input_tokens == 1  # all but the last token came from the cache
stopped = client.messages.create(stop_sequences=["4"], **question)
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "4")

weather: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}
messages: Any = [{"role": "user", "content": "How is the weather in Bern?"}]
choice: Any = {"type": "any", "disable_parallel_tool_use": True}
with client.messages.stream(messages=messages, tools=[weather], tool_choice=choice, **options) as stream:
    kinds = {event.type for event in stream}
    call = stream.get_final_message()
[use] = call.content
assert use.type == "tool_use"
assert (call.stop_reason, use.name, list(use.input)) == ("tool_use", "weather", ["city"])
assert "input_json" in kinds
messages += [
    {"role": "assistant", "content": call.content},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny, 25 degrees."}]},
]
assert client.messages.create(messages=messages, tools=[weather], **options).content
brought: Any = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": weather}}
later: Any = [messages[0], {"role": "system", "content": [brought]}]
assert client.messages.create(messages=later, tool_choice=choice, **options).content[0].type == "tool_use"
count = client.messages.count_tokens(model=options["model"], messages=messages, tools=[weather])
assert count.input_tokens > 50

# A model that thinks; the block of its thoughts goes back with the next question.
thinking: Any = {**question, "model": "thinker", "thinking": {"type": "enabled", "budget_tokens": 4}}
thought, reply = client.messages.create(**thinking).content
assert thought.type == "thinking"
assert reply.type == "text"
with client.messages.stream(**thinking) as stream:
    kinds = {event.type for event in stream}
    streamed: Any = stream.get_final_message().content
assert [streamed[0].thinking, streamed[0].signature] == [thought.thinking, thought.signature]
assert streamed[1].text == reply.text
assert {"thinking", "signature", "text"} <= kinds
turns = [{"role": "assistant", "content": [thought, reply]}, {"role": "user", "content": "And 3+3?"}]
thinking["messages"] = [*question["messages"], *turns]
assert client.messages.create(**thinking).content
[unthinking] = client.messages.create(**{**question, "model": "thinker", "thinking": {"type": "disabled"}}).content
assert unthinking.type == "text"

assert client.models.retrieve("thinker").id == "thinker"
assert options["model"] in [model.id for model in client.models.list(limit=1)]
try:
    client.messages.create(model="nobody", max_tokens=8, messages=messages[:1])
    request_id = None
except anthropic.NotFoundError as error:
    request_id = error.request_id
assert request_id
print(anthropic.__version__, said.text, use.name, use.input)
