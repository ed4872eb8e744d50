"""The library and command `llm` on an engine of its own process, through the plugin that offgrid-llama brings.

python docs/integrations/with_llm.py
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from typing import Literal

import llm
from pydantic import BaseModel, Field

NAME = "offgrid/smollm2-135m-instruct"


class Person(BaseModel):
    """The shape of an answer."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def weather(city: Literal["Bern", "Oslo"]) -> str:
    """Return the weather in a city."""
    return f"It is raining in {city}."


async def asynchronously() -> str:
    """Stream an answer, and ask twice at once."""
    model = llm.get_async_model(NAME)
    pieces = [piece async for piece in model.prompt("What is 2+2?", temperature=0, max_tokens=60)]
    assert len(pieces) > 1
    both = await asyncio.gather(*(model.prompt("What is 2+2?", temperature=0, max_tokens=60).text() for _ in range(2)))
    assert all(both)
    return str(both[0])


def main() -> None:
    """Prompt, talk, call, embed."""
    model = llm.get_model(NAME)
    answer = model.prompt("What is 2+2?", system="You are terse.", temperature=0, max_tokens=40)
    pieces = list(answer)
    assert len(pieces) > 1
    usage = answer.usage()
    assert usage.input is not None
    assert usage.output is not None
    print(answer.text(), usage.input, usage.output)

    talk = model.conversation()
    first = talk.prompt("Tell me about Bern.", temperature=0, max_tokens=40)
    said = first.text()
    second = talk.prompt("Go on.", temperature=0, max_tokens=40)
    print(said, "|", second.text())
    assert second.usage().input > first.usage().input + first.usage().output  # it was sent what was said before

    person = Person.model_validate_json(model.prompt("Jason is 25 years old.", schema=Person, temperature=0).text())
    print(repr(person))

    options = {"temperature": 0, "max_tokens": 60}
    talk = model.conversation(tools=[weather])
    called = talk.prompt("How is the weather in Bern?", tool_choice="required", **options)
    call, *_ = called.tool_calls()
    print(call.name, call.arguments)
    told = talk.prompt(tool_results=called.execute_tool_calls(), **options)
    print(told.text())
    assert told.usage().input > called.usage().input + called.usage().output
    assert model.chain("How is the weather in Bern?", tools=[weather], options=options).text()

    assert asyncio.run(asynchronously())

    vectors = list(llm.get_embedding_model(NAME).embed_multi(["a cat", "a dog", "the sea"]))
    assert [len(vector) for vector in vectors] == [576] * 3
    assert abs(sum(value * value for value in vectors[0]) - 1) < 1e-3

    with tempfile.TemporaryDirectory() as folder:  # the command, with a folder of its own
        environment = {**os.environ, "LLM_USER_PATH": folder}
        command = [sys.executable, "-m", "llm", "-m", NAME, "-o", "max_tokens", "40", "--no-log", "What is 2+2?"]
        told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
        assert told.strip(), told
        plugins = subprocess.run(
            [sys.executable, "-m", "llm", "plugins"], capture_output=True, text=True, env=environment, check=True
        ).stdout
        assert any(each["name"] == "offgrid-llama" for each in json.loads(plugins))


if __name__ == "__main__":
    main()
