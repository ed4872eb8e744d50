"""Ollama's descriptions of models."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from ollama import ListResponse, ProcessResponse, ShowResponse

from helpers.official import check
from offgrid_llama.server.dialects.ollama_models import Described, listed, running, shown
from offgrid_llama.worker.frames import Facts

FACTS = Facts(
    size=10, digest="d" * 64, architecture="llama", file_type="Q4_K_M", n_params=134_515_008, n_ctx_train=8192,
    n_embd=576, template="{{ messages }}", metadata={"general.license": "apache-2.0", "llama.context_length": 8192},
    generates=True, chats=True, reasons=True, fills=True, embeds=False,
)  # fmt: skip
MODEL = Described("a:latest", 1_700_000_000, 10, 4096, FACTS, {"temperature": 0.5, "samplers": ["top_k"]})
ABSENT = Described("b:latest", 0, 20, 2048, None)
OWN = ("name", "capabilities", "context_length", "embedding_length")


def test_all_models() -> None:
    """The newest first, with its size, its digest and its details; also one whose file is not there yet."""
    told = listed([ABSENT, MODEL])
    check(ListResponse, told, OWN)
    first, second = told["models"]
    assert (first["name"], first["model"], first["size"], first["digest"]) == ("a:latest", "a:latest", 10, "d" * 64)
    assert first["modified_at"] == "2023-11-14T22:13:20Z"
    assert first["details"] == {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "134.52M",
        "quantization_level": "Q4_K_M", "context_length": 8192, "embedding_length": 576,
    }  # fmt: skip
    assert (second["name"], second["size"], second["details"]["families"]) == ("b:latest", 20, [])


def test_one_model() -> None:
    """Its metadata, its template, what it can do, and its parameters as lines, the context's size among them."""
    told = shown(MODEL)
    check(ShowResponse, told)
    assert told["template"] == "{{ messages }}"
    assert told["model_info"]["llama.context_length"] == 8192
    assert told["model_info"]["general.parameter_count"] == 134_515_008
    assert [line.split() for line in told["parameters"].splitlines()] == [["num_ctx", "4096"], ["temperature", "0.5"]]
    assert told["modelfile"].startswith("FROM a:latest\nPARAMETER num_ctx")
    assert told["license"] == "apache-2.0"
    check(ShowResponse, shown(ABSENT))
    assert (shown(ABSENT)["model_info"], shown(ABSENT)["capabilities"]) == ({}, [])


@pytest.mark.parametrize(
    ("can", "told"),
    [
        ({}, ["completion", "insert", "tools", "thinking"]),
        ({"generates": False, "chats": False, "reasons": False, "fills": False, "embeds": True}, ["embedding"]),
        ({"chats": False, "reasons": False, "fills": False}, ["completion"]),
    ],
)
def test_what_a_model_can_do(can: dict[str, Any], told: list[str]) -> None:
    """In Ollama's words; each model that chats can be told of tools."""
    facts = msgspec.structs.replace(FACTS, **can)
    assert shown(Described("a", 0, 0, 0, facts))["capabilities"] == told


@pytest.mark.parametrize(
    ("n", "told"), [(134_515_008, "134.52M"), (7_241_732_096, "7.2B"), (12_000, "12.00K"), (999, "999")]
)
def test_sizes(n: int, told: str) -> None:
    """Numbers of parameters are short."""
    facts = msgspec.structs.replace(FACTS, n_params=n)
    assert shown(Described("a", 0, 0, 0, facts))["details"]["parameter_size"] == told


def test_loaded_models() -> None:
    """The one that stays for longest first; one that stays for ever as long as Ollama says for that."""
    told = running([(MODEL, 7, 60.0), (ABSENT, 8, math.inf)])
    check(ProcessResponse, told)
    for_ever, soon = told["models"]
    assert (for_ever["name"], soon["name"], soon["size"], soon["context_length"]) == ("b:latest", "a:latest", 7, 4096)
    now = datetime.now(timezone.utc)
    left = datetime.fromisoformat(soon["expires_at"].replace("Z", "+00:00")) - now
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)
    assert datetime.fromisoformat(for_ever["expires_at"].replace("Z", "+00:00")).year > now.year + 200
