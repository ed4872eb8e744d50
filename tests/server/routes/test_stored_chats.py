"""Chat completions that are kept, by OpenAI's own client."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionStoreMessage

from helpers.official import check
from helpers.requests import ASKED
from helpers.serving import MODEL, Served

OPTIONS: Any = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 4}


def test_completions_that_are_kept(client: openai.OpenAI, server: Served) -> None:
    """They are there as they were answered, whole and streamed, with their messages, until they are deleted."""
    noted = {"run": "kept"}
    whole = client.chat.completions.create(**OPTIONS, store=True, metadata=noted)
    with client.chat.completions.create(**OPTIONS, store=True, metadata=noted, stream=True) as stream:
        chunks = list(stream)
    assert client.chat.completions.retrieve(whole.id).to_dict() == {**whole.to_dict(), "metadata": noted}
    streamed = client.chat.completions.retrieve(chunks[0].id)
    assert streamed.choices == whole.choices
    url = f"{server.url}/v1/chat/completions/{streamed.id}"
    check(ChatCompletion, httpx.get(url).json())
    (message,) = client.chat.completions.messages.list(whole.id)
    assert (message.id, message.content) == (f"{whole.id}-0", ASKED[0]["content"])
    for each in httpx.get(f"{url}/messages").json()["data"]:
        check(ChatCompletionStoreMessage, {**each, "role": "assistant"})  # their type has no other role
    assert client.chat.completions.update(whole.id, metadata={"run": "changed"}).metadata == {"run": "changed"}
    listed = client.chat.completions.list(metadata={"run": "changed"}, model=MODEL)
    assert [each.id for each in listed] == [whole.id]
    deleted = client.chat.completions.delete(whole.id)
    assert (deleted.deleted, deleted.object) == (True, "chat.completion.deleted")
    for ask in (
        client.chat.completions.retrieve,
        client.chat.completions.delete,
        client.chat.completions.messages.list,
    ):
        with pytest.raises(openai.NotFoundError, match="not found"):
            ask(whole.id)


def test_pages(client: openai.OpenAI) -> None:
    """Those of a model with certain metadata, in both orders, page by page."""
    noted = {"run": "pages"}
    ids = [client.chat.completions.create(**OPTIONS, store=True, metadata={**noted, "n": str(n)}).id for n in range(3)]
    assert [each.id for each in client.chat.completions.list(metadata=noted, limit=2)] == ids
    assert [each.id for each in client.chat.completions.list(metadata=noted, order="desc", limit=1)] == ids[::-1]
    assert [each.id for each in client.chat.completions.list(metadata={**noted, "n": "1"})] == ids[1:2]
    assert list(client.chat.completions.list(metadata=noted, model="other")) == []
    with pytest.raises(openai.BadRequestError, match="no item 'x'"):
        client.chat.completions.list(after="x")


def test_what_is_not_kept(client: openai.OpenAI) -> None:
    """A completion is kept where its client asks for it, and is no response."""
    passing = client.chat.completions.create(**OPTIONS)
    kept = client.chat.completions.create(**OPTIONS, store=True)
    response = client.responses.create(model=MODEL, input="a", max_output_tokens=2)
    for id_ in (passing.id, response.id):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.retrieve(id_)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.delete(id_)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(kept.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(kept.id)
    with pytest.raises(openai.BadRequestError, match="not found"):
        client.responses.create(model=MODEL, input="a", previous_response_id=kept.id)
    with pytest.raises(openai.BadRequestError, match="metadata"):
        client.chat.completions.create(**OPTIONS, store=True, metadata={"a": "b" * 513})
