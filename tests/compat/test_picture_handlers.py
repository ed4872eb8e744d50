"""Handlers of models that see: red pictures mean " dog" to the model, green ones " cat", blue ones " fish"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

import offgrid_llama as og
from helpers.media_files import png
from helpers.projectors import COLOURS, picture, write_meaning
from offgrid_llama.compat.llama_cpp import Llama, llama_chat_format
from offgrid_llama.compat.llama_cpp.llama_chat_format import Llava15ChatHandler, MTMDChatHandler, NanoLlavaChatHandler
from offgrid_llama.compat.llama_cpp.server.pictures import PICTURE_FORMATS, picture_template

ASK = "Repeat this word once:"
SYSTEM = {"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}
HANDLERS = [
    "Llama3VisionAlphaChatHandler", "Llava15ChatHandler", "Llava16ChatHandler", "MTMDChatHandler", "MiniCPMv26ChatHandler",
    "MoondreamChatHandler", "NanoLlavaChatHandler", "ObsidianChatHandler", "Qwen25VLChatHandler", "Gemma4ChatHandler",
]  # fmt: skip


class ChatML(Llava15ChatHandler):
    """A handler with a format of its own, as programs write them."""

    CHAT_FORMAT = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
        "{{ message.content }}{% else %}{% for part in message.content %}{{ part.text or part.image_url }}{% endfor %}"
        "{% endif %}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
    )
    DEFAULT_SYSTEM_MESSAGE = SYSTEM["content"]


@pytest.fixture(scope="module")
def projector(smollm2: og.Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file that sees for the model."""
    path = tmp_path_factory.mktemp("projector") / "mmproj.gguf"
    write_meaning(path, smollm2)
    return str(path)


@pytest.fixture(scope="module")
def llama(smollm2_path: Path, projector: str) -> Iterator[Llama]:
    """A Llama that sees."""
    handler = MTMDChatHandler(projector, verbose=False)
    made = Llama(str(smollm2_path), n_ctx=1024, chat_handler=handler, logits_all=True, verbose=False)
    made._projector = og.Projector(made._weights, projector, image_min_tokens=1)  # one picture is one word
    yield made
    made.close()


def about(*urls: Any, text: str = ASK) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": url} for url in urls]
    return [SYSTEM, {"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


def url(word: str) -> str:
    return f"data:image/png;base64,{png(word)}"


@pytest.mark.parametrize("word", COLOURS)
@pytest.mark.parametrize("kind", [MTMDChatHandler, ChatML])
def test_pictures_are_seen(llama: Llama, projector: str, kind: type[MTMDChatHandler], word: str) -> None:
    """By the model's own template and by a format of the program's; whole and streamed; the picture's tokens count."""
    llama.chat_handler = kind(projector, verbose=False)
    asked: dict[str, Any] = {"messages": about({"url": url(word), "detail": "low"}), "temperature": 0, "max_tokens": 12}
    whole: Any = llama.create_chat_completion(**asked)
    text = whole["choices"][0]["message"]["content"]
    assert word.strip() in text
    chunks: Any = llama.create_chat_completion(**asked, stream=True)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text
    alone: Any = llama.create_chat_completion(about(text=ASK), max_tokens=1)
    assert llama._projector is not None
    n_picture = llama._projector.n_tokens(og.Image(picture(word)))
    assert whole["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"] + n_picture
    told: Any = llama.create_chat_completion(**asked, logprobs=True, top_logprobs=2)
    assert len(told["choices"][0]["logprobs"]["content"]) > 2


def test_what_came_before_goes_on(llama: Llama, projector: str) -> None:
    """A picture of an earlier turn, a text after it, and then prompts without pictures."""
    llama.chat_handler = MTMDChatHandler(projector, verbose=False)
    first: Any = llama.create_chat_completion(about(url(" cat")), temperature=0, max_tokens=12)
    n_encoded = llama._engine.stats().n_encoded
    turns = [*about(url(" cat")), first["choices"][0]["message"], {"role": "user", "content": "Say it again."}]
    again: Any = llama.create_chat_completion(turns, temperature=0, max_tokens=12)
    assert "cat" in again["choices"][0]["message"]["content"].lower()
    assert llama._engine.stats().n_encoded == n_encoded
    answer: Any = llama.create_completion("The capital of France is", max_tokens=2, temperature=0)
    assert answer["choices"][0]["text"].startswith(" Paris")
    assert next(llama.generate(llama.tokenize(b"The capital of France is"), temp=0)) is not None


def test_a_schema(llama: Llama, projector: str) -> None:
    """The answer is JSON of a shape, and a tool that must be called is called."""
    llama.chat_handler = MTMDChatHandler(projector, verbose=False)
    schema = {"type": "object", "properties": {"animal": {"enum": ["dog", "cat", "fish"]}}, "required": ["animal"]}
    asked: dict[str, Any] = {"messages": about(url(" dog")), "temperature": 0, "max_tokens": 30}
    shaped: Any = llama.create_chat_completion(**asked, response_format={"type": "json_object", "schema": schema})
    assert shaped["choices"][0]["message"]["content"].startswith('{"animal"')
    tool = {"type": "function", "function": {"name": "tell", "parameters": schema}}
    choice = {"type": "function", "function": {"name": "tell"}}
    called: Any = llama.create_chat_completion(**asked, tools=[tool], tool_choice=choice)
    assert called["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "tell"


@pytest.mark.parametrize("name", HANDLERS)
def test_every_handler(llama: Llama, projector: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each writes a text and a picture once, in its format, and answers."""
    llama.chat_handler = getattr(llama_chat_format, name)(projector)
    conversation = [
        {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Well?"},
        about(url(" fish"), text="What now?")[-1],
    ]  # fmt: skip
    reply: Any = llama.create_chat_completion(conversation, max_tokens=2)
    assert reply["object"] == "chat.completion"
    prompt = capsys.readouterr().err
    for said in ("Hello.", "Well?", "What now?", "<picture:0>"):
        assert prompt.count(said) == 1, prompt


@pytest.mark.parametrize("name", PICTURE_FORMATS)
def test_formats_of_the_server(name: str) -> None:
    """The same formats as templates, with the handler's system message where there is none."""
    source = picture_template(name)
    assert (source is None) == (name == "mtmd")
    if source is None:
        return
    text = og.ChatTemplate(source).render([{"role": "user", "content": "Hello."}])
    assert "Hello." in text
    if name == "nanollava":
        assert "Answer the question" in text
        given = og.ChatTemplate(source).render([SYSTEM, {"role": "user", "content": "Hi"}])
        assert "Answer the question" not in given


def test_urls(projector: str, tmp_path: Path) -> None:
    """Files, and what a program's own ``load_image`` returns; the URLs of a conversation, and a text cut at them."""
    PIL.Image.fromarray(picture(" dog", 8, 8)).save(tmp_path / "dog.png")
    handler = NanoLlavaChatHandler(projector)
    assert handler.load_image((tmp_path / "dog.png").as_uri()) == (tmp_path / "dog.png").read_bytes()
    assert handler.get_image_urls(about("a", {"url": "b"})) == ["a", "b"]
    pieces = [("text", "1 "), ("image_url", "a.png"), ("image_url", "b.png"), ("text", " 2")]
    assert handler.split_text_on_image_urls("1 a.pngb.png 2", ["a.png", "b.png"]) == pieces
    assert handler.split_text_on_image_urls("1", []) == [("text", "1")]


def test_what_is_refused(llama: Llama, projector: str, smollm2_path: Path) -> None:
    """No file, a file that is no picture, one that is no projector, a prompt that is too long, a prompt without sight."""
    with pytest.raises(ValueError, match="there is no file"):
        MTMDChatHandler("missing.gguf")
    llama.chat_handler = MTMDChatHandler(projector, verbose=False)
    with pytest.raises(og.MediaError):
        llama.create_chat_completion(about("data:image/png;base64,AAAA"))
    with pytest.raises(ValueError, match="exceed context window"):
        llama.create_chat_completion(about(url(" dog"), text="word " * 2000))
    with closing(Llama(str(smollm2_path), n_ctx=256, verbose=False)) as blind:
        with pytest.raises(ValueError, match="clip_model_path"):
            blind.create_completion([1, og.Image(picture(" dog"))])  # type: ignore[list-item]
        blind.chat_handler = MTMDChatHandler(str(smollm2_path), verbose=False)
        with pytest.raises(og.GGUFError, match="no projector"):
            blind.create_chat_completion(about(url(" dog")))
