"""Chat handlers for models that see: pictures are parts of the prompts that a Llama's Engine computes."""

from __future__ import annotations

import re
import secrets
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offgrid_llama.media.data_url import from_data_url
from offgrid_llama.media.image import Image

from .chat_formatter import text_of
from .chat_handlers import answer_to
from .chat_request import ChatRequest
from .picture_formats import FORMATS
from .pretrained import downloaded
from .template_formatters import Jinja2ChatFormatter, TemplateRefusal

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Gemma4ChatHandler", "Llama3VisionAlpha", "Llama3VisionAlphaChatHandler", "Llava15ChatHandler", "Llava16ChatHandler",
    "MTMDChatHandler", "MiniCPMv26ChatHandler", "MoondreamChatHandler", "NanoLlavaChatHandler", "ObsidianChatHandler",
    "Qwen25VLChatHandler",
]  # fmt: skip

MAX_PICTURE_BYTES = 64 * 2**20
PICTURE_SECONDS = 30
"""Of a picture that a URL names: its size, and the time that its server may be silent."""


class MTMDChatHandler:
    """Answers conversations with pictures, by the model's own chat template.

    Args:
        clip_model_path: the model's projector (an mmproj). It is loaded for the first conversation.
        verbose: print each prompt to stderr. use_gpu: encode on a GPU if there is one.

    Raises ValueError where there is no such file.
    """

    def __init__(self, clip_model_path: str, verbose: bool = True, use_gpu: bool = True) -> None:
        if not Path(clip_model_path).exists():
            raise ValueError(f"clip_model_path: there is no file {clip_model_path}")
        self.clip_model_path = clip_model_path
        self.verbose = verbose
        self.use_gpu = use_gpu

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        local_dir: Any = None,
        local_dir_use_symlinks: Any = "auto",
        cache_dir: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Return a handler of the file of a Hugging Face repository whose name fits ``filename``."""
        return cls(clip_model_path=downloaded(repo_id, filename, None, local_dir, cache_dir), **kwargs)

    def load_image(self, image_url: str) -> bytes:
        """Return the file that a URL names: a ``data:`` URL, or whatever urllib fetches. May be overridden."""
        return self._load_image(image_url)

    @staticmethod
    def _load_image(image_url: str) -> bytes:
        if image_url.startswith("data:"):
            return from_data_url(image_url)
        with urllib.request.urlopen(image_url, timeout=PICTURE_SECONDS) as answer:  # noqa: S310 - the program's own URLs
            data: bytes = answer.read(MAX_PICTURE_BYTES + 1)
        if len(data) > MAX_PICTURE_BYTES:
            raise ValueError(f"the picture at {image_url[:200]} has more than {MAX_PICTURE_BYTES:,} bytes")
        return data

    @staticmethod
    def get_image_urls(messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return the URLs of the pictures in the user's messages, in order."""
        return [_url(part) for message in messages for part in _pictures(message)]

    def _template(self, llama: Any) -> str:
        template = llama.metadata.get("tokenizer.chat_template")
        if not template:
            raise ValueError(f"{type(self).__name__} needs a model with a chat template")
        return str(template)

    def _messages(self, messages: Sequence[Mapping[str, Any]], marks: Mapping[int, str]) -> list[dict[str, Any]]:
        """Return the conversation for the template, with texts in the places of the pictures."""
        return [_with(message, lambda part: {"type": "text", "text": marks[id(part)]}) for message in messages]

    def _formatted(self, formatter: Jinja2ChatFormatter, messages: list[dict[str, Any]], options: Any) -> str:
        """Return the prompt of a conversation, whose contents are texts where the template takes no parts."""
        try:
            return formatter(messages=messages, **options).prompt
        except TemplateRefusal:
            if not any(isinstance(message.get("content"), list) for message in messages):
                raise
        texts = [{**message, "content": text_of(message)} for message in messages]
        return formatter(messages=texts, **options).prompt

    def __call__(self, *, llama: Any, messages: Any, **keywords: Any) -> Any:
        """Answer a conversation, as ``Llama.create_chat_completion`` does."""
        request = ChatRequest.of(llama, messages, keywords)
        pictures = [part for message in messages for part in _pictures(message)]
        secret = secrets.token_hex(16)  # no text of a conversation has it
        marks = {id(part): f"<{secret}:{at}>" for at, part in enumerate(pictures)}
        eos, bos = (_text(llama, token) for token in (llama.token_eos(), llama.token_bos()))
        formatter = Jinja2ChatFormatter(template=self._template(llama), eos_token=eos, bos_token=bos)
        options = {
            "functions": request.functions, "tools": request.tools, "function_call": request.function_call,
            "tool_choice": request.tool_choice, **request.further,
        }  # fmt: skip
        text = self._formatted(formatter, self._messages(messages, marks), options)
        if self.verbose:
            print(text.replace(secret, "picture"), file=sys.stderr)  # noqa: T201 - as they do
        llama.use_projector(self.clip_model_path, use_gpu=self.use_gpu)
        return answer_to(request, self._prompt(llama, text, secret, pictures), request.stop)

    def _prompt(self, llama: Any, text: str, secret: str, pictures: Sequence[Mapping[str, Any]]) -> list[int | Image]:
        """Return a rendered prompt as tokens and pictures, with BOS where the model wants one and the text has none."""
        prompt: list[int | Image] = []
        for index, piece in enumerate(re.split(f"<{secret}:(\\d+)>", text)):
            if index % 2:
                prompt.append(Image(self.load_image(_url(pictures[int(piece)]))))
            elif piece:
                prompt += llama.tokenize(piece.encode(), add_bos=False, special=True)
        bos = llama.token_bos()
        return prompt if not llama._weights.vocab.add_bos or prompt[:1] == [bos] else [bos, *prompt]


class Gemma4ChatHandler(MTMDChatHandler):
    """The same, under the name of Gemma 4."""


class Llava15ChatHandler(MTMDChatHandler):
    """Answers conversations with pictures in a format of its own, that of LLaVA 1.5.

    Attributes:
        CHAT_FORMAT: the format, as Jinja: it writes the URLs of pictures where these are. May be overridden.
        DEFAULT_SYSTEM_MESSAGE: of conversations without one; None is none.
    """

    CHAT_FORMAT, DEFAULT_SYSTEM_MESSAGE = FORMATS["llava-1-5"]

    def __init__(self, clip_model_path: str, verbose: bool = True) -> None:
        super().__init__(clip_model_path, verbose)

    def _template(self, llama: Any) -> str:
        return self.CHAT_FORMAT

    def _messages(self, messages: Sequence[Mapping[str, Any]], marks: Mapping[int, str]) -> list[dict[str, Any]]:
        has_system = any(message["role"] == "system" and message.get("content") for message in messages)
        system = [] if has_system or not self.DEFAULT_SYSTEM_MESSAGE else [
            {"role": "system", "content": self.DEFAULT_SYSTEM_MESSAGE}
        ]  # fmt: skip
        marked = [
            _with(message, lambda part: {"type": "image_url", "image_url": marks[id(part)]}) for message in messages
        ]
        return [*system, *marked]

    @staticmethod
    def split_text_on_image_urls(text: str, image_urls: Sequence[str]) -> list[tuple[str, str]]:
        """Return a text in pieces: ("text", it) and ("image_url", one of these)."""
        if not image_urls:
            return [("text", text)] if text else []
        pieces = re.split("(" + "|".join(map(re.escape, image_urls)) + ")", text)
        return [("image_url" if at % 2 else "text", piece) for at, piece in enumerate(pieces) if piece]


class ObsidianChatHandler(Llava15ChatHandler):
    """That of Obsidian."""

    CHAT_FORMAT, DEFAULT_SYSTEM_MESSAGE = FORMATS["obsidian"]


class MoondreamChatHandler(Llava15ChatHandler):
    """That of Moondream."""

    CHAT_FORMAT, DEFAULT_SYSTEM_MESSAGE = FORMATS["moondream"]


class Llava16ChatHandler(Llava15ChatHandler):
    """That of LLaVA 1.6."""

    CHAT_FORMAT, DEFAULT_SYSTEM_MESSAGE = FORMATS["llava-1-6"]


class NanoLlavaChatHandler(Llava15ChatHandler):
    """That of nanoLLaVA."""

    CHAT_FORMAT, DEFAULT_SYSTEM_MESSAGE = FORMATS["nanollava"]


class Llama3VisionAlphaChatHandler(Llava15ChatHandler):
    """That of Llama 3 Vision Alpha."""

    CHAT_FORMAT, DEFAULT_SYSTEM_MESSAGE = FORMATS["llama-3-vision-alpha"]


Llama3VisionAlpha = Llama3VisionAlphaChatHandler


class MiniCPMv26ChatHandler(Llava15ChatHandler):
    """That of MiniCPM-V 2.6."""

    CHAT_FORMAT, DEFAULT_SYSTEM_MESSAGE = FORMATS["minicpm-v-2.6"]


class Qwen25VLChatHandler(Llava15ChatHandler):
    """That of Qwen2.5-VL."""

    CHAT_FORMAT, DEFAULT_SYSTEM_MESSAGE = FORMATS["qwen2.5-vl"]


def _pictures(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts of a user's message that are pictures."""
    content = message.get("content")
    if message["role"] != "user" or not isinstance(content, list):
        return []
    return [part for part in content if isinstance(part, Mapping) and part.get("type") == "image_url"]


def _url(part: Mapping[str, Any]) -> str:
    found = part["image_url"]
    return str(found["url"] if isinstance(found, Mapping) else found)


def _with(message: Mapping[str, Any], marked: Any) -> dict[str, Any]:
    """Return a message with something in the place of each picture."""
    pictures = list(map(id, _pictures(message)))
    if not pictures:
        return dict(message)
    return {**message, "content": [marked(part) if id(part) in pictures else part for part in message["content"]]}


def _text(llama: Any, token: int) -> str:
    return "" if token < 0 else llama.detokenize([token], special=True).decode("utf-8", errors="ignore")
