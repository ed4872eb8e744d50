"""Pictures and sound on the chat page."""

from __future__ import annotations

from pathlib import Path

from helpers.media_files import png, wav
from helpers.pages import Page, chromium, needs_chromium
from helpers.serving import Served

pytestmark = needs_chromium

DROP = """
const [name, base64, type] = arguments;
const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([bytes], name, { type }));
document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
"""


def test_pictures_and_sounds(seeing: Served, tmp_path: Path) -> None:
    """A picture that is dropped is shown, sent and seen; so is a sound heard. A model that does neither gets none."""
    with chromium(tmp_path / "profile") as driver:
        page = Page(driver, seeing.url)
        page.load()
        page.fill(
            system="You are a helpful AI assistant named SmolLM, trained by Hugging Face", temperature=0, max_tokens=12
        )
        page.js(DROP, "a.png", png(" dog"), "image/png")
        page.wait(lambda: page.every("#attached img"))
        assert "dog" in page.answer("Repeat this word once:")
        assert page.every(".user img")
        assert not page.every("#attached img")
        page.one("#new-chat").click()
        page.js(DROP, "a.wav", wav(" cat"), "audio/wav")
        page.wait(lambda: page.every("#attached audio"))
        assert "cat" in page.answer("Repeat this word once:")
        page.js(DROP, "a.txt", "AAAA", "text/plain")
        page.wait(lambda: "a.txt" in page.text("#attach-note"))
        page.js("model.value = 'blind'; model.dispatchEvent(new Event('change'))")
        assert not page.one("#attach").is_displayed()
        assert page.js("return violations") == []
