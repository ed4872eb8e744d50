"""The chat page in a headless Chromium, with the real server and model, and with answers that no model gives on demand.

``python tests/server/test_page.py URL FILE.png`` makes a picture of a short conversation with the server at URL.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.pages import EVIL, FAKE_ANSWER, FAKE_REPLY, MODEL, SPEED, Keys, Page, chromium, needs_chromium

pytestmark = needs_chromium


@pytest.fixture
def page(served: str, tmp_path: Path) -> Iterator[Page]:
    """The page, just loaded, in a browser of its own."""
    with chromium(tmp_path / "profile") as driver:
        page = Page(driver, served)
        page.load()
        yield page


def test_loads_and_lists_the_model(page: Page) -> None:
    """The page loads without an error or a violation of its own policy, and has a ready model chosen."""
    policy = page.promise(
        "const [done] = arguments;"
        "fetch(location.href).then((response) => done(response.headers.get('Content-Security-Policy')))"
    )
    assert str(policy).startswith("default-src 'none'")
    assert MODEL in [option.get_property("value") for option in page.every("#model option")]
    assert page.value("#model")
    page.wait(lambda: page.js("return document.activeElement.id") == "input")
    assert page.js("return violations") == []
    log = page.driver.get_log("browser")
    assert [entry for entry in log if entry["level"] in ("WARNING", "SEVERE")] == []


def test_an_answer_comes_piece_by_piece(page: Page) -> None:
    """An answer grows while it comes, and has its tokens and their speed below it in the end."""
    page.fill(temperature=0, max_tokens=64)
    page.js(
        "window.sizes = new Set(); new MutationObserver(() => {"
        "  const text = document.querySelector('.answer .text')?.textContent;"
        "  if (text) sizes.add(text.length);"
        "}).observe(document.getElementById('transcript'), { childList: true, characterData: true, subtree: true })"
    )
    page.js("more.ignore_eos = true; more.max_tokens = 6000")  # it does not end by itself
    page.ask("Write a story about a river.")
    page.wait(lambda: page.js("return sizes.size") > 1)
    page.one("#stop").click()
    page.wait(page.done)
    page.js("window.more = {}")
    page.one("#new-chat").click()
    answer = page.answer("Write a story about a river.")
    assert len(answer) > 20
    found = SPEED.search(page.text(".meta"))
    assert found is not None
    assert 1 < int(found[1]) <= 64
    assert float(found[2]) > 0
    sent = page.asked()
    assert (sent["stream"], sent["temperature"], sent["max_tokens"], sent["key"]) == (True, 0, 64, None)
    assert sent["messages"] == [{"role": "user", "content": "Write a story about a river."}]


def plain(text: str) -> str:
    """Return a text without what the page turns into nodes."""
    return re.sub(r"[\s*#`]", "", text)


def test_stop_keeps_what_has_come(page: Page) -> None:
    """Stop ends an answer; what has come of it stays, and is part of what the next question is asked with."""
    page.fill(temperature=0)
    page.js("more.ignore_eos = true")  # it does not end by itself
    page.ask("Write a very long story about a river, with many chapters.")
    page.wait(lambda: len(page.text(".answer .text")) > 20)
    page.one("#stop").click()
    page.wait(page.done)
    assert "stopped" in page.text(".meta")
    kept = page.js("return document.querySelector('.answer .text').textContent")
    assert len(kept) > 20

    page.js("window.more = {}")
    page.fill(max_tokens=8)
    assert page.answer("What is the capital of France?")
    assert [message["role"] for message in page.asked()["messages"]] == ["user", "assistant", "user"]
    assert plain(page.said()[1]) == plain(kept)
    assert len(page.every(".turn")) == 2
    assert page.every(".error") == []


def test_stop_before_an_answer_gives_the_question_back(page: Page) -> None:
    """A question that is stopped before its answer begins is in the input again, and not in the conversation."""
    page.fake("Never mind")
    page.one("#stop").click()
    page.wait(page.done)
    assert page.value("#input") == "Never mind"
    page.one("#input").clear()
    page.fake("Hello")
    assert page.said() == ["Hello"]
    assert len(page.every(".turn")) == 1


def test_markup_stays_text(page: Page) -> None:
    """Markup in a question or an answer is shown as it stands, and never becomes an element."""
    page.fill(temperature=0, max_tokens=8)
    assert page.answer(EVIL)
    assert page.text(".user") == EVIL
    page.fake("More of it")
    page.say(f"{EVIL} **{EVIL}** `{EVIL}`\n\n```{EVIL}\n{EVIL}\n")
    page.finish()
    assert page.text(".text p") == " ".join([EVIL] * 3)
    assert page.text(".text pre") == EVIL
    assert page.every("#transcript img, #transcript script") == []
    assert page.js("return violations") == []


def test_nothing_is_asked_for_outside(page: Page) -> None:
    """Whatever the page loads and asks comes from its own server."""
    page.fill(max_tokens=4)
    page.answer("Hello")
    entries = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    page.wait(lambda: f"{page.url}/v1/chat/completions" in page.js(entries))
    names = page.js(entries)
    assert {name.removeprefix(page.url) for name in names} >= {
        "/page/page.css", "/page/page.js", "/page/icon.svg", "/v1/models", "/v1/chat/completions"
    }  # fmt: skip
    assert [name for name in names if not name.startswith(page.url + "/")] == []


def test_fits_a_narrow_screen(page: Page) -> None:
    """At a width of 360 pixels nothing sticks out to the side, long words, code and settings included."""
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": False}
    )
    page.fake("a" * 200)
    page.say("b" * 200 + "\n\n```python\n" + "c" * 200 + "\n```\n\n`" + "d" * 200 + "`")
    page.finish()
    assert page.js("return innerWidth") == 360
    excess = "const it = document.querySelector(arguments[0]); return it.scrollWidth - it.clientWidth"
    parts = ("html", "main", "header", "footer")
    assert {part: page.js(excess, part) for part in parts} == dict.fromkeys(parts, 0)
    page.one("#settings-toggle").click()
    assert {part: page.js(excess, part) for part in parts} == dict.fromkeys(parts, 0)
    box = page.js("return document.getElementById('settings-form').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["right"] <= 360
    assert box["bottom"] <= 640


def test_a_refusal_loses_no_text(page: Page) -> None:
    """A refusal is shown with its reason, and the question is in the input again."""
    page.fill(max_tokens=0)
    page.ask("What is 2+2?")
    page.wait(lambda: page.every(".error"))
    assert re.match(r"HTTP 4\d\d: .*max_tokens", page.text(".error"))
    assert page.value("#input") == "What is 2+2?"
    page.fill(temperature=0, max_tokens=8)
    assert page.answer("")  # Enter alone sends what was given back
    assert page.every(".error") == []
    assert page.said() == ["What is 2+2?"]


def test_an_unknown_model_is_named(page: Page) -> None:
    """A model that the server does not have is an error in the transcript, and the question is kept."""
    page.js(
        "const model = document.getElementById('model');"
        "model.add(new Option('no-such-model')); model.value = 'no-such-model'"
    )
    page.ask("Hello")
    page.wait(lambda: page.every(".error"))
    assert "no-such-model" in page.text(".error")
    assert page.value("#input") == "Hello"


def test_a_lost_server_loses_no_text(page: Page) -> None:
    """Without a server the page says so, and keeps the question in front of what was typed meanwhile."""
    page.js(
        "stubs['v1/chat/completions'] = () => new Promise((_, reject) => {"
        "  window.lose = () => reject(new TypeError('Failed to fetch'));"
        "})"
    )
    page.ask("First")
    page.wait(lambda: page.js("return Boolean(window.lose)"))
    page.one("#input").send_keys("second")
    page.js("lose()")
    page.wait(lambda: page.every(".error"))
    assert page.text(".error") == "The server cannot be reached."
    assert page.value("#input") == "First\n\nsecond"


@pytest.mark.parametrize(
    ("break_off", "message"),
    [
        ("chunk({ error: { message: 'out of luck' } })", "out of luck"),
        ("stream.error(new TypeError('network error'))", "The connection was lost."),
        ("stream.close()", "The connection ended before the answer did."),
    ],
)
def test_a_broken_answer_keeps_what_has_come(page: Page, break_off: str, message: str) -> None:
    """An answer that breaks off says why, and what has come of it stays in the conversation."""
    page.fake("Question")
    page.say("Half an")
    page.js(break_off)
    page.wait(page.done)
    assert page.text(".error") == message
    assert page.text(".answer .text") == "Half an"
    assert page.value("#input") == ""
    page.fake("Next")
    assert page.said() == ["Question", "Half an", "Next"]


def test_reasoning_stands_above_the_answer(page: Page) -> None:
    """Reasoning is in a block of its own, open while it comes and closed by the answer, and is not sent again."""
    page.fake("Question")
    page.say("Let me think.", "reasoning_content")
    assert page.text(".thought") == "Let me think."
    page.say("It is 4.")
    assert page.one(".reasoning").get_property("open") is False
    page.one(".reasoning summary").click()  # which the end of the answer leaves as it is
    page.finish()
    assert page.one(".reasoning").get_property("open") is True
    assert page.text(".thought") == "Let me think."
    assert page.text(".answer .text") == "It is 4."
    page.fake("Next")
    assert page.said() == ["Question", "It is 4.", "Next"]


def test_a_key_is_asked_for(page: Page) -> None:
    """Where the server answers 401 the settings open and say so; the key is sent then, and kept while the tab is."""
    page.js(FAKE_REPLY, "v1/chat/completions", 401, {"error": {"message": "no key"}})
    page.ask("Hello")
    page.wait(lambda: page.text("#key-note") == "The server needs an API key.")
    assert "no key" in page.text(".error")
    assert page.js("return document.activeElement.id") == "api-key"
    assert page.asked()["key"] is None
    page.one("#api-key").send_keys("secret", Keys.ESCAPE)
    page.fake("")  # what was given back
    assert page.asked()["key"] == "Bearer secret"
    page.load()
    assert page.value("#api-key") == "secret"
    assert page.js("return JSON.stringify(localStorage)").find("secret") == -1


def test_a_model_that_loads_says_so(page: Page) -> None:
    """The state of the chosen model stands beside it, and is looked at until it is ready; the choice is remembered."""

    def listed(**models: str) -> None:
        data = [{"id": name, "object": "model", "status": status} for name, status in models.items()]
        page.js(FAKE_REPLY, "v1/models", 200, {"object": "list", "data": data})

    listed(one="unloaded", two="loading")
    page.one("#new-chat").click()
    page.js("document.getElementById('model').focus()")
    page.wait(lambda: page.value("#model") == "one")
    assert page.text("#model-status").startswith("not loaded")
    assert [option.text.strip() for option in page.every("#model option")] == ["one", "two (loading)"]
    page.one("#model").send_keys("two")
    page.wait(lambda: page.text("#model-status") == "loading ...")
    assert page.js("return localStorage.getItem('offgrid-llama.model')") == "two"
    listed(one="unloaded", two="ready")
    page.wait(lambda: page.text("#model-status") == "")
    assert page.value("#model") == "two"


def test_follows_only_a_reader_at_the_end(page: Page) -> None:
    """The transcript scrolls along with an answer, but not away from what a reader has scrolled back to."""
    lines = "\n\n".join(["line"] * 60)
    rest = "const main = document.querySelector('main'); return main.scrollHeight - main.scrollTop - main.clientHeight"
    page.fake("Question")
    page.say(lines)
    assert page.js(rest) < 2
    page.promise(
        "const [done] = arguments; document.querySelector('main').scrollTop = 100;"
        "requestAnimationFrame(() => requestAnimationFrame(done))"
    )
    page.say("\n\n" + lines)
    assert page.js("return document.querySelector('main').scrollTop") == 100
    page.finish()
    assert page.js("return document.querySelector('main').scrollTop") == 100


def test_text_becomes_nodes(page: Page) -> None:
    """Fences, code, bold and paragraphs are shown as such, and what was written before is not built anew."""
    page.fake("Question")
    page.say("One **bold `x`** and `**`.\n\n1. list\n   ~~~python\n   if x:\n       y = '```'\n   ~~~\n")
    page.js("window.first = document.querySelector('.text').children[0]")
    page.say("\n## Two\n\n```\nopen")
    page.say(" end")
    page.finish()
    kinds = page.js("return [...document.querySelector('.text').children].map((it) => it.localName + it.className)")
    assert kinds == ["p", "p", "divcode", "h3", "divcode"]
    assert page.js("return first === document.querySelector('.text').children[0]")
    assert page.js("return first.textContent") == "One bold x and **."
    assert page.text(".text strong") == "bold x"
    code = "if x:\n    y = '```'"
    assert [block.get_property("textContent") for block in page.every(".text pre")] == [code, "open end"]
    assert [label.text for label in page.every(".code span")] == ["python", "code"]
    page.js("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    page.every(".code button")[0].click()
    page.wait(lambda: page.js("return window.copied") == code)
    assert page.every(".code button")[0].text == "Copied"


def test_keys(page: Page) -> None:
    """Enter sends, Shift-Enter begins a line, and Enter belongs to an input method while that is composing."""
    page.js(FAKE_ANSWER)
    field = page.one("#input")
    field.send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    page.js(
        "document.getElementById('input').dispatchEvent("
        "  new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))"
    )
    assert page.value("#input") == "one\ntwo"
    assert page.every(".turn") == []
    field.send_keys(Keys.ENTER)
    page.wait(lambda: page.js("return window.stream !== null"))
    assert page.text(".user") == "one\ntwo"
    assert page.value("#input") == ""
    field.send_keys("three", Keys.ENTER)
    assert page.value("#input") == "three"  # one at a time
    assert len(page.every(".turn")) == 1


def test_a_new_chat_knows_nothing_of_the_last(page: Page) -> None:
    """New chat ends what is being answered and forgets what was said; the system prompt stays."""
    page.fill(system="Be brief.")
    page.fake("Question")
    page.say("Answer")
    page.finish()
    page.fake("And now?")
    page.say("More")
    page.one("#new-chat").click()
    assert page.every(".turn") == []
    assert page.done()
    page.fake("Another")
    assert page.value("#input") == ""
    assert page.said() == ["Be brief.", "Another"]


READ_EVENTS = """
const [bytes, size, done] = arguments;
import("/page/page.js").then(async ({ events }) => {
  const stream = new ReadableStream({
    start(controller) {
      for (let i = 0; i < bytes.length; i += size) controller.enqueue(Uint8Array.from(bytes.slice(i, i + size)));
      controller.close();
    },
  });
  const found = [];
  for await (const data of events(stream)) found.push(data);
  done(found);
});
"""


def test_events_are_read_however_they_are_cut(page: Page) -> None:
    """Events are the same wherever the network cuts the bytes, inside a character or the end of a line, too."""
    text = ": comment\n\ndata: é€😀\n\nevent: x\nid: 1\ndata:two\ndata:  three\n\n\ndata: [DONE]\n\ndata: cut off\n"
    for newline in ("\n", "\r\n", "\r"):
        for size in (1, 2, 3, 7, 1000):
            found = page.promise(READ_EVENTS, list(text.replace("\n", newline).encode()), size)
            assert found == ["é€😀", "two\n three", "[DONE]"], (newline, size)


def screenshot(url: str, file: str) -> None:
    """Write a picture of a short conversation with the server at ``url``."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as driver:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 960, "height": 720, "deviceScaleFactor": 2, "mobile": False}
        )
        page = Page(driver, url.rstrip("/"))
        page.load()
        page.fill(temperature=0, max_tokens=160)
        page.answer("What is the capital of France?")
        page.answer("Write a Python function that adds two numbers.")
        driver.save_screenshot(file)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/server/test_page.py URL FILE.png")
    screenshot(*sys.argv[1:])
