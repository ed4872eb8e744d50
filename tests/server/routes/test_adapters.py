"""Adapters that tokens of the prompt switch on, through the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from helpers.adapters import write_lora
from helpers.requests import post
from helpers.serving import Served, serving
from helpers.twin import LETTERS, tiny_llama, write_tiny_llama

MARKS = (9, 10)
PROMPT = [7, 8, *MARKS, 11]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny model with two of them, of which one is not used unless a request says so."""
    folder = tmp_path_factory.mktemp("adapters")
    write_tiny_llama(folder / "tiny.gguf", more=LETTERS)
    for seed, name in enumerate("yz"):
        write_lora(folder / f"{name}.gguf", tiny_llama()[1], seed, MARKS)
    loras = f'{{ "{folder}/y.gguf" = 1.0, "{folder}/z.gguf" = 0.0 }}'
    settings = folder / "settings.toml"
    settings.write_text(f'[[models]]\nname = "tiny"\nmodel = "{folder}/tiny.gguf"\nloras = {loras}\n', encoding="utf-8")
    with serving("--config", str(settings)) as served:
        yield served


def completed(served: Served, prompt: list[int], **more: Any) -> str:
    asked = {"model": "tiny", "prompt": prompt, "max_tokens": 6, "temperature": 0, **more}
    text: str = post(served, "/v1/completions", asked).json()["choices"][0]["text"]
    return text


def test_what_switches_them_on(served: Served) -> None:
    """The list tells their tokens; a prompt without these is answered without the adapter; a request has one of them."""
    told = httpx.get(f"{served.url}/lora-adapters").json()
    assert [each["alora_invocation_tokens"] for each in told] == [[*MARKS], [*MARKS]]
    assert [each["scale"] for each in told] == [1, 0]
    y, z = ([{"id": number, "scale": 1}] for number in range(2))
    texts = [completed(served, PROMPT, lora=lora) for lora in ([], y, z)]
    assert len({*texts}) == 3
    assert completed(served, PROMPT) == texts[1]
    assert completed(served, [7, 8, 12]) == completed(served, [7, 8, 12], lora=[])
    refused = post(served, "/v1/completions", {"model": "tiny", "prompt": PROMPT, "lora": [*y, *z]})
    assert (refused.status_code, "y.gguf and z.gguf" in refused.json()["error"]["message"]) == (400, True)
