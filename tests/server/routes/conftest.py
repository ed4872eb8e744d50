"""OpenAI's own client of the server."""

from __future__ import annotations

import openai
import pytest

from helpers.serving import Served


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
