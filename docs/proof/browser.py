#!/usr/bin/env python3
"""The browser test: a page of another origin uses a server by OpenAI's client. docs/proof/browser.py [URL] --key KEY

The server has this key, and ORIGIN as its only one of cors_origins: a port of this machine where nothing listens yet. A
page from there is answered, and a page from any other port gets nothing. The test needs chromium, chromedriver and selenium.
The packages of docs/clients/package.json are installed beside it.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver as Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
PATIENCE = 120  # seconds


class Pages(SimpleHTTPRequestHandler):
    """The files of docs/clients, for the browser."""

    def log_message(self, *_args: object) -> None:
        """Say nothing of requests."""


@contextmanager
def pages(port: int) -> Iterator[str]:
    """Serve docs/clients from a port of this machine, and yield the origin."""
    with ThreadingHTTPServer(("127.0.0.1", port), partial(Pages, directory=str(CLIENTS))) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a Chromium that sends no requests of its own."""
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--no-proxy-server", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def result(driver: Any, origin: str, **options: str) -> dict[str, Any]:
    """Return what comes of the page of an origin, with what the browser logs meanwhile."""
    driver.get("about:blank")  # the same page with another fragment would not be loaded again
    driver.get(f"{origin}/with_openai.html#{urlencode(options)}")
    shown = driver.find_element(By.ID, "result")
    try:
        WebDriverWait(driver, PATIENCE, poll_frequency=0.1).until(lambda _: shown.text)
    finally:
        log = [entry["message"] for entry in driver.get_log("browser")]
    found: dict[str, Any] = {**json.loads(shown.text), "log": log}
    return found


def check_answers(found: dict[str, Any]) -> None:
    """Check that a page has had one call of the tool, with arguments that fit, and a text piece by piece."""
    [(name, arguments)] = found.get("calls") or [("", found)]
    assert name == "weather", found
    assert list(arguments) == ["city"], found
    assert len(arguments["city"]) <= 20, found
    assert found["text"].strip(), found
    assert found["pieces"] > 1, found
    print(name, arguments, f"and a text in {found['pieces']} pieces")


def check_error(found: dict[str, Any], name: str, status: int | None) -> None:
    """Check that a page has had an error of the client."""
    assert (found.get("error"), found.get("status")) == (name, status), found
    print(name)


def main() -> None:
    """Run the test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:11611")
    parser.add_argument("--key", required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--origin", default="http://127.0.0.1:11612")
    args = parser.parse_args()
    given = {"url": args.url, "key": args.key, "model": args.model}
    with pages(urlsplit(args.origin).port or 80) as allowed, pages(0) as foreign, chromium() as driver:
        assert allowed == args.origin, f"pages come from {allowed}"
        check_answers(result(driver, allowed, **given))
        # Errors reach the page as errors, not as a connection that fails.
        check_error(result(driver, allowed, **{**given, "key": "not-the-key"}), "AuthenticationError", 401)
        check_error(result(driver, allowed, **{**given, "model": "none"}), "NotFoundError", 404)

        found = result(driver, foreign, **given)
        check_error(found, "APIConnectionError", None)
        assert any("blocked by CORS policy" in line for line in found["log"]), found
    print("browser test passed")


if __name__ == "__main__":
    main()
