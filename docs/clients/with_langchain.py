"""langchain-openai against a server: an answer, a stream, structured output. python docs/clients/with_langchain.py [URL]"""

from __future__ import annotations

import sys

from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"
model = ChatOpenAI(
    base_url=f"{url}/v1", api_key="none", model="tinyllama-1.1b-chat.Q4_K_M", temperature=0, max_tokens=48
)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    is_capital: bool


answer = model.invoke([("system", "Answer in one word."), ("human", "What is the capital of France?")])
print(answer.content)
print("".join(str(chunk.content) for chunk in model.stream("Count to five.")))
city = model.with_structured_output(City, method="json_schema").invoke("Describe Paris.")
assert isinstance(city, City)
print(repr(city))
