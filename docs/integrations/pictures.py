"""Pictures and sounds through frameworks, to a model that sees red as a dog, green as a cat, and hears 400 Hz as a dog.

PYTHONPATH=tests python -m pytest -c /dev/null --rootdir . docs/integrations/pictures.py

It needs llama-index-core, haystack-ai, pydantic-ai-slim, litellm and llm; LangChain's are in langchain_standard.py.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litellm
import llm
import pytest
from haystack import dataclasses as haystack
from llama_index.core.base.llms.types import AudioBlock, ChatMessage, ImageBlock, TextBlock
from pydantic_ai import Agent
from pydantic_ai.messages import BinaryContent

import offgrid_llama as og
from helpers.media_files import png, wav
from helpers.projectors import write_meaning
from offgrid_llama.integrations.haystack import OffgridLlamaChatGenerator
from offgrid_llama.integrations.litellm import register
from offgrid_llama.integrations.llama_index import OffgridLlamaLLM
from offgrid_llama.integrations.llm import OffgridLlama
from offgrid_llama.integrations.pydantic_ai import OffgridLlamaModel

ASK = "Repeat this word once:"
WORDS = ("dog", "cat")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Engine]:
    """An engine that sees and hears."""
    path = tmp_path_factory.mktemp("projector") / "mmproj.gguf"
    with og.Model("smollm2-135m-instruct") as model:
        write_meaning(path, model)
        with (
            og.Projector(model, path, image_min_tokens=1) as projector,
            og.Engine(model, projector=projector, n_ctx=2048, n_seq_max=2) as made,
        ):
            yield made


@pytest.mark.parametrize("word", WORDS)
def test_llama_index(engine: og.Engine, word: str) -> None:
    """Blocks with a file's bytes, or base64 of them."""
    llm: Any = OffgridLlamaLLM(model=engine, temperature=0, max_tokens=12)
    for block in (
        ImageBlock(image=base64.b64decode(png(f" {word}"))),
        ImageBlock(image=png(f" {word}").encode()),
        AudioBlock(audio=base64.b64decode(wav(f" {word}"))),
    ):
        said = llm.chat([ChatMessage(role="user", blocks=[TextBlock(text=ASK), block])])
        assert word in said.message.content


@pytest.mark.parametrize("word", WORDS)
def test_haystack(engine: og.Engine, word: str) -> None:
    """An ImageContent among the parts of a message."""
    generator: Any = OffgridLlamaChatGenerator(model=engine, generation_kwargs={"temperature": 0, "max_tokens": 12})
    picture = haystack.ImageContent(png(f" {word}"), mime_type="image/png")
    found = generator.run(messages=[haystack.ChatMessage.from_user(content_parts=[ASK, picture])])
    assert word in found["replies"][0].text


@pytest.mark.parametrize("word", WORDS)
def test_pydantic_ai(engine: og.Engine, word: str) -> None:
    """BinaryContent of a picture, and of a sound."""
    agent: Any = Agent(OffgridLlamaModel(engine), model_settings={"temperature": 0, "max_tokens": 12})
    for file, kind in ((png, "image/png"), (wav, "audio/wav")):
        content = BinaryContent(base64.b64decode(file(f" {word}")), media_type=kind)
        assert word in agent.run_sync([ASK, content]).output


@pytest.mark.parametrize("word", WORDS)
def test_litellm(engine: og.Engine, word: str) -> None:
    """OpenAI's parts, as LiteLLM has them."""
    register({"seeing": engine})
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(f' {word}')}"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": ASK}, url]}]
    said = litellm.completion("offgrid/seeing", messages=messages, temperature=0, max_tokens=12)
    assert word in said.choices[0].message.content


@pytest.mark.parametrize("word", WORDS)
def test_llm(tmp_path: Path, word: str) -> None:
    """Attachments of a model with a projector; another model refuses them."""
    with og.Model("smollm2-135m-instruct") as model:
        write_meaning(tmp_path / "mmproj.gguf", model)
    seeing = OffgridLlama("seeing", "smollm2-135m-instruct", str(tmp_path / "mmproj.gguf"))
    options = {"temperature": 0, "max_tokens": 12}
    sound = llm.Attachment(content=base64.b64decode(wav(f" {word}")), type="audio/wav")
    assert word in seeing.prompt(ASK, attachments=[sound], **options).text()
    with pytest.raises(ValueError, match="attachment"):
        OffgridLlama("blind", "smollm2-135m-instruct").prompt(ASK, attachments=[sound], **options).text()
