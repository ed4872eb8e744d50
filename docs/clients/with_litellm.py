"""litellm against a server: an answer, a stream and vectors. python docs/clients/with_litellm.py [URL]"""

from __future__ import annotations

import sys

import litellm

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"
options = {"model": "openai/tinyllama-1.1b-chat.Q4_K_M", "api_base": f"{url}/v1", "api_key": "none"}
messages = [{"role": "user", "content": "What is the capital of France?"}]

reply = litellm.completion(messages=messages, max_tokens=24, temperature=0, **options)
text = reply.choices[0].message.content
assert text
print(text)
chunks = litellm.completion(messages=messages, max_tokens=24, temperature=0, stream=True, **options)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
vectors = litellm.embedding(input=["a cat", "a dog"], encoding_format="float", **options)
assert len(vectors.data) == 2
print(len(vectors.data[0]["embedding"]), "values in a vector")
