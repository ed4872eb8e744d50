"""openai's files and batches against a server with a batch_dir. python docs/clients/with_openai_batches.py [URL]"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import openai
from openai.types import Batch

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
model = "tinyllama-1.1b-chat.Q4_K_M"
questions = ["What is 2+2?", "What is 3+3?"]


def line(name: str, question: str, **change: Any) -> dict[str, Any]:
    """Return a request of a batch."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0, **change}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(lines: list[dict[str, Any]]) -> str:
    """Upload the requests of a batch; return the file's id."""
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (len(content), "requests.jsonl", "batch")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    return file.id


def lines_of(file_id: str) -> dict[str, Any]:
    """Return the lines of a file of results, by their ids."""
    found = map(json.loads, client.files.content(file_id).text.splitlines())
    return {each["custom_id"]: each for each in found}


def ended(batch: Batch) -> Batch:
    """Return a batch when it has ended."""
    while batch.status in {"validating", "in_progress", "finalizing", "cancelling"}:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


requests = [line(f"question-{i}", question) for i, question in enumerate(questions)]
source = upload([*requests, line("refused", "?", temperature=9)])
assert source in [file.id for file in client.files.list(purpose="batch")]
batch = client.batches.create(
    input_file_id=source, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "the example"}
)
batch = ended(batch)
assert batch.status == "completed", batch
assert batch.id in [each.id for each in client.batches.list(limit=5)]
counts = batch.request_counts
assert counts
assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
assert batch.output_file_id
assert batch.error_file_id
answers = lines_of(batch.output_file_id)
for i, question in enumerate(questions):
    body = answers[f"question-{i}"]["response"]["body"]
    alone = client.chat.completions.create(**line("", question)["body"])
    assert body["choices"][0]["message"]["content"] == alone.choices[0].message.content
assert lines_of(batch.error_file_id)["refused"]["response"]["status_code"] == 400

asked: dict[str, Any] = {"model": model, "input": questions[0], "max_output_tokens": 24, "temperature": 0}
source = upload([{"custom_id": "response", "method": "POST", "url": "/v1/responses", "body": asked}])
endpoint: Any = "/v1/responses"  # which the first clients of the Responses API do not know
batch = ended(client.batches.create(input_file_id=source, endpoint=endpoint, completion_window="24h"))
assert batch.output_file_id
[response] = lines_of(batch.output_file_id).values()
assert response["response"]["body"]["output"][0]["content"][0]["text"] == client.responses.create(**asked).output_text

many = upload([line(str(i), "Tell me a story.", max_tokens=500, ignore_eos=True) for i in range(40)])
cancelled = client.batches.create(input_file_id=many, endpoint="/v1/chat/completions", completion_window="24h")
cancelled = ended(client.batches.cancel(cancelled.id))
assert cancelled.status == "cancelled", cancelled
for file_id in source, many:
    assert client.files.delete(file_id).deleted
assert not {source, many} & {file.id for file in client.files.list()}
print(openai.__version__, answers["question-0"]["response"]["body"]["choices"][0]["message"]["content"])
