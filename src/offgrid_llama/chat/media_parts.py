"""Pictures and sounds in messages: taken out before a template writes the prompt, and put back between its tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ChatTemplateError, MediaError
from offgrid_llama.media.audio import Audio
from offgrid_llama.media.data_url import from_base64, from_data_url
from offgrid_llama.media.image import Image

from .template.template import PromptPart

if TYPE_CHECKING:
    from offgrid_llama.media.projector import Media

__all__ = ["has_media", "media_between", "take_media"]


def take_media(messages: object) -> tuple[Any, dict[str, Media]]:
    """Return messages with a mark in the place of each picture and sound, and these by their marks.

    A picture is an Image, or one of ``{"type": "image", "image": ...}`` with all that Image takes but a str,
    ``{"type": "image_url", "image_url": {"url": "data:..."}}`` and ``{"type": "input_image", "image_url": "data:..."}``; a
    sound is an Audio, ``{"type": "audio", "audio": ...}`` or ``{"type": "input_audio", "input_audio": {"data": base64}}``.

    Raises MediaError, TypeError and ValueError that name the place.
    """
    if not has_media(messages) or not isinstance(messages, Sequence):
        return messages, {}
    media: dict[str, Media] = {}
    secret = token_hex(16)  # no text of a conversation has it
    taken: list[Any] = []
    for at, message in enumerate(messages):
        if not _may_have_media(message):
            taken.append(message)
            continue
        parts = []
        for index, part in enumerate(message["content"]):
            found = _media(part, f"messages[{at}]['content'][{index}]")
            if found is None:
                parts.append(part)
            else:
                mark = f"<{secret}:{len(media)}>"
                media[mark] = found
                parts.append({"type": "text", "text": mark})
        taken.append({**message, "content": parts})
    return taken, media


def has_media(messages: object) -> bool:
    """Return whether a part of a message is a picture or a sound, or none that is known."""
    return (
        isinstance(messages, Sequence)
        and not isinstance(messages, (str, bytes))
        and any(map(_may_have_media, messages))
    )


def media_between(parts: Sequence[PromptPart], media: Mapping[str, Media]) -> list[list[PromptPart] | Media]:
    """Return a rendered prompt with the pictures and sounds in the places of their marks, and texts before and behind each.

    Raises ChatTemplateError where the template has left out one, or written it twice.
    """
    marks = re.compile("(" + "|".join(map(re.escape, media)) + ")")
    found: list[list[PromptPart] | Media] = [[]]
    n = 0
    for part in parts:
        for index, text in enumerate(marks.split(part.text)):
            if index % 2:
                n += 1
                found += [media[text], []]
            elif text:
                found[-1].append(PromptPart(text, part.special))  # type: ignore[union-attr]
    if n != len(media):
        raise ChatTemplateError(f"the template writes {n} of {len(media)} pictures and sounds")
    return found


def _may_have_media(message: object) -> bool:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, Sequence) or isinstance(content, (str, bytes, bytearray)):
        return False
    return any(not isinstance(part, Mapping) or part.get("type") in _KINDS for part in content)


def _media(part: object, where: str) -> Media | None:
    """Return the picture or sound that a part is; None for another part."""
    if isinstance(part, (Image, Audio)):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _KINDS or not isinstance(part, Mapping):
        return None
    key, make = _KINDS[kind]
    try:
        return make(part.get(key))
    except MediaError as error:
        raise MediaError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        kind_of_error = (
            TypeError if isinstance(error, TypeError) else ValueError
        )  # those of Unicode take other arguments
        raise kind_of_error(f"{where}[{key!r}]: {error}") from error


def _image(source: Any) -> Image:
    return source if isinstance(source, Image) else Image(_no_name(source, "a picture"))


def _audio(source: Any) -> Audio:
    return source if isinstance(source, Audio) else Audio(_no_name(source, "a sound"))


def _no_name(source: Any, what: str) -> Any:
    """Return a source that is no str: messages come from strangers, too, and must not name a file of this machine."""
    if isinstance(source, str):
        raise TypeError(f"{what} must be bytes, a Path, a file, an array or of this library, not a str")
    return source


def _image_of_url(source: Any) -> Image:
    url = source.get("url") if isinstance(source, Mapping) else source
    if not isinstance(url, str):
        raise TypeError(f"must be a URL, or a dict with one as 'url', not {type(url).__name__}")
    if not url[:5].lower() == "data:":
        raise ValueError(f"must be a data: URL, not {url[:40]!r}; fetch the file, and give its bytes")
    return Image(from_data_url(url))


def _input_audio(source: Any) -> Audio:
    data = source.get("data") if isinstance(source, Mapping) else None
    if not isinstance(data, str):
        raise TypeError("must be a dict with 'data', the file in base64")
    return Audio(from_data_url(data) if data[:5].lower() == "data:" else from_base64(data))


_KINDS: dict[object, tuple[str, Callable[[Any], Media]]] = {
    "image": ("image", _image), "audio": ("audio", _audio), "image_url": ("image_url", _image_of_url),
    "input_image": ("image_url", _image_of_url), "input_audio": ("input_audio", _input_audio),
}  # fmt: skip
"""The kinds of parts with a picture or a sound: the key that has it, and what makes it."""
