"""The chat page in a headless Chromium, as its reader has it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = [
    "EVIL", "FAKE_ANSWER", "FAKE_REPLY", "MODEL", "SPEED", "Keys", "Page", "chromium", "needs_chromium",
]  # fmt: skip

CI = bool(os.environ.get("CI"))
CHROMIUM = Path("/usr/bin/chromium")
DRIVER = Path("/usr/bin/chromedriver")

if not CI:
    pytest.importorskip("selenium")

from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.chrome.webdriver import WebDriver as Chrome  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

needs_chromium = pytest.mark.skipif(
    not CI and not (CHROMIUM.exists() and DRIVER.exists()), reason="needs chromium and chromedriver"
)

MODEL = "smollm2-135m-instruct"
PATIENCE = 120  # seconds; a build with sanitizers is slow
SPEED = re.compile(r"(\d+) tokens, ([\d.]+) tokens/s")
EVIL = "<img src=x onerror=alert(1)>"

# Before any script of the page: what it asks for is noted in `asked`, with what a test adds as `more`, and `stubs` answers
# in the server's place.
PRELUDE = """
window.asked = [];
window.more = {};
window.stubs = {};
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective + event.blockedURI));
const real = window.fetch;
window.fetch = (path, options) => {
  if (options?.body) {
    const body = { ...JSON.parse(options.body), ...more };
    asked.push({ ...body, key: options.headers.get("Authorization") });
    options = { ...options, body: JSON.stringify(body) };
  }
  return stubs[path] ? stubs[path](options) : real(path, options);
};
"""

# An answer that comes from the test: chunk(...) is a piece of it, finish() its end.
FAKE_ANSWER = """
window.stream = null;
stubs["v1/chat/completions"] = async (options) => {
  const body = new ReadableStream({ start: (controller) => { window.stream = controller; } });
  options.signal.addEventListener("abort", () => stream.error(new DOMException("aborted", "AbortError")));
  return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
};
window.send = (text) => stream.enqueue(new TextEncoder().encode(text));
window.chunk = (value) => send(`data: ${JSON.stringify(value)}\\n\\n`);
window.finish = () => { send("data: [DONE]\\n\\n"); stream.close(); };
"""

# The stub of a path that answers with a status and a JSON value.
FAKE_REPLY = """
const [path, status, value] = arguments;
stubs[path] = async () => new Response(JSON.stringify(value), { status });
"""


class Page:
    """The page as its reader has it: elements by CSS selector, and what one does with them."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver: Any = driver  # some releases of selenium have types for all of it, and some do not
        self.url = url

    def load(self) -> None:
        """Open the page and wait for its models."""
        self.driver.get(self.url)
        self.wait(lambda: self.value("#model"))

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        waiting = WebDriverWait(
            self.driver, PATIENCE, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        waiting.until(lambda _: condition())

    def js(self, script: str, *args: object) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *args)

    def promise(self, script: str, *args: object) -> Any:
        """Run a script that calls its last argument, and return what it calls it with."""
        return self.driver.execute_async_script(script, *args)

    def every(self, selector: str) -> list[WebElement]:
        """Return what a selector finds."""
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def one(self, selector: str) -> WebElement:
        """Return the last element that a selector finds, which is that of the latest turn."""
        return self.every(selector)[-1]

    def text(self, selector: str) -> str:
        """Return the visible text of the last element, or "" where there is none."""
        found = self.every(selector)
        return found[-1].text if found else ""

    def value(self, selector: str) -> str:
        """Return what is in a field."""
        return str(self.one(selector).get_property("value"))

    def fill(self, **fields: object) -> None:
        """Fill in settings."""
        self.one("#settings-toggle").click()
        for name, value in fields.items():
            field = self.one("#" + name.replace("_", "-"))
            field.clear()
            field.send_keys(str(value))
        self.one("#settings-toggle").click()

    def ask(self, question: str) -> None:
        """Type a question and send it."""
        self.one("#input").send_keys(question, Keys.ENTER)

    def done(self) -> bool:
        """Whether nothing is being answered."""
        return self.one("#send").is_displayed() and not self.every(".turn.running")

    def answer(self, question: str) -> str:
        """Ask, wait for the end, and return the answer."""
        self.ask(question)
        self.wait(self.done)
        return self.text(".answer .text")

    def fake(self, question: str) -> None:
        """Ask something that the test answers, and wait for its turn."""
        self.js(FAKE_ANSWER)
        self.ask(question)
        self.wait(lambda: self.js("return window.stream !== null"))

    def say(self, content: str, key: str = "content") -> None:
        """Send a piece of the faked answer, and wait until it is drawn."""
        self.js("chunk({ choices: [{ delta: { [arguments[1]]: arguments[0] } }] })", content, key)
        self.promise("const [done] = arguments; setTimeout(() => requestAnimationFrame(() => setTimeout(done)))")

    def finish(self) -> None:
        """End the faked answer."""
        self.js("finish()")
        self.wait(self.done)

    def asked(self) -> dict[str, Any]:
        """Return the last request for an answer, with its Authorization header as `key`."""
        last: dict[str, Any] = self.js("return asked.at(-1)")
        return last

    def said(self) -> list[str]:
        """Return the texts of its messages."""
        return [message["content"] for message in self.asked()["messages"]]


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """Start a Chromium that sends no requests of its own."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
        "--no-first-run", "--no-proxy-server", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--window-size=1000,800", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": PRELUDE})
        yield driver
    finally:
        driver.quit()
