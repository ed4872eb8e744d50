"""instructor against a server: an answer as a Pydantic model. python docs/clients/with_instructor.py [URL]"""

from __future__ import annotations

import sys

import instructor
import openai
from pydantic import BaseModel, Field

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"


class Person(BaseModel):
    """A person in a text."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=instructor.Mode.JSON_SCHEMA)
person = client.chat.completions.create(
    model="tinyllama-1.1b-chat.Q4_K_M",
    messages=[{"role": "user", "content": "Jason is 25 years old."}],
    response_model=Person,
    max_tokens=64,
    temperature=0,
)
assert isinstance(person, Person)
print(repr(person))
