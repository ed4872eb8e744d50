"""Chat completions that are kept: of each key its own, in memory and in a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.stored_responses.access import Access
from offgrid_llama.server.stored_responses.in_memory import InMemory
from offgrid_llama.server.stored_responses.in_sqlite import InSqlite
from offgrid_llama.server.stored_responses.record import Backend
from offgrid_llama.server.stored_responses.stored_chats import StoredChats

BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "memory": lambda _: InMemory(100, 10**6, 0), "file": lambda folder: InSqlite(folder / "responses", 10**6, 0),
}  # fmt: skip


def completion(id_: str, **metadata: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{id_}", "model": "m", "choices": [], "metadata": metadata}


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_each_key_has_its_own(backend: Callable[[Path], Backend], tmp_path: Path) -> None:
    """Another key finds, lists, changes and deletes none of them."""

    async def main() -> None:
        access = Access(backend(tmp_path))
        chats = StoredChats(access)
        await chats.put("k", completion("a", n="1"), b"[]")
        await chats.put("k", completion("b", n="2"), b"[]")
        assert (await chats.page("other", None, 9, "asc", None, {}))["data"] == []
        for work in (
            chats.get("other", "chatcmpl-a"), chats.delete("other", "chatcmpl-a"),
            chats.set_metadata("other", "chatcmpl-a", {}), chats.get("k", "chatcmpl-c"), chats.get("k", "resp_a"),
        ):  # fmt: skip
            with pytest.raises(ApiError, match="not found") as refused:
                await work
            assert refused.value.status == 404
        changed = await chats.set_metadata("k", "chatcmpl-a", {"n": "3"})
        assert msgspec.json.decode(changed) == completion("a", n="3")
        assert (await chats.get("k", "chatcmpl-a")).response == changed
        found = await chats.page("k", None, 9, "asc", "m", {"n": "3"})
        assert [each["id"] for each in found["data"]] == ["chatcmpl-a"]
        await chats.delete("k", "chatcmpl-a")
        assert [each["id"] for each in (await chats.page("k", None, 9, "desc", None, {}))["data"]] == ["chatcmpl-b"]
        await access.close()

    asyncio.run(main())


def test_a_restart(tmp_path: Path) -> None:
    """Those in a file are there afterwards."""

    async def kept() -> None:
        access = Access(BACKENDS["file"](tmp_path))
        await StoredChats(access).put("k", completion("a"), b"[1]")
        await access.close()

    async def again() -> None:
        access = Access(BACKENDS["file"](tmp_path))
        record = await StoredChats(access).get("k", "chatcmpl-a")
        assert (msgspec.json.decode(record.response), record.input) == (completion("a"), b"[1]")
        await access.close()

    asyncio.run(kept())
    asyncio.run(again())
