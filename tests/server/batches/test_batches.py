"""The order of batches."""

from __future__ import annotations

from pathlib import Path

from offgrid_llama.server.batches.batches import Batches
from offgrid_llama.server.settings import Settings
from offgrid_llama.server.supervision.supervisor import Supervisor


def test_keys_have_turns(tmp_path: Path) -> None:
    """Behind a batch of one key comes one of another, however many the first has begun before."""
    settings = Settings()
    batches = Batches(tmp_path, settings, Supervisor(settings))
    try:
        for key in ("a", "a", "a", "b"):
            upload = batches.files.begin()
            file = batches.files.finish(upload, key, "in", "batch")
            batches.create(key, file.id, "/v1/completions", "24h", None)
        order = []
        while (record := batches.take_turn()) is not None:
            order.append(record.key)
            record.now("completed")
        assert order == ["a", "b", "a", "a"]
    finally:
        batches.close()
