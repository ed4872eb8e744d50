"""Requests that name a preset."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from offgrid_llama.server import ModelSettings, PresetSettings, Settings
from offgrid_llama.server.supervision.supervisor import Supervisor
from offgrid_llama.worker.generation import Conversation, Options, Sampling, Texts

USER, SYSTEM = {"role": "user", "content": "a"}, {"role": "system", "content": "Rhyme."}
POET = PresetSettings(
    "poet", "alias", template="{{ x }}", system="Rhyme.", sampling={"temperature": 1.5, "logit_bias": {"5": 1}},
    loras={"y": 2},
)  # fmt: skip


@pytest.fixture
def supervisor() -> Supervisor:
    model = ModelSettings("m", aliases=["alias"], loras={"x": 1.0})
    return Supervisor(Settings(models=[model], presets=[POET, PresetSettings("plain", "m")]))


@pytest.mark.parametrize("name", ["poet", "POET", "poet:latest"])
def test_its_defaults(supervisor: Supervisor, name: str) -> None:
    """They are those of the preset, under each way in which clients write its name. The request itself is not changed."""
    assert supervisor.find(name).name == "m"
    what = Conversation(messages=[USER], options=Options(sampling=Sampling(top_k=3)))
    before = msgspec.to_builtins(what)
    made = supervisor.presets.applied(name, what)
    sampling = made.options.sampling
    assert (sampling.temperature, sampling.top_k, sampling.logit_bias) == (1.5, 3, {5: 1.0})
    assert (made.template, made.messages, made.options.loras) == ("{{ x }}", [SYSTEM, USER], {1: 2.0})
    assert msgspec.to_builtins(what) == before


def test_what_a_request_says_itself(supervisor: Supervisor) -> None:
    """It comes before the preset."""
    options = Options(sampling=Sampling(temperature=0), loras={0: 3.0})
    mine = {"role": "developer", "content": "Do not."}
    made = supervisor.presets.applied("poet", Conversation(messages=[mine, USER], options=options, template="{{ y }}"))
    assert (made.options.sampling.temperature, made.options.loras) == (0, {0: 3.0})
    assert (made.template, made.messages) == ("{{ y }}", [mine, USER])
    later = supervisor.presets.applied("poet", Conversation(messages=[USER], before=[1, 2]))
    assert later.messages == [USER]


def test_texts(supervisor: Supervisor) -> None:
    """A text has the sampling and the adapters of the preset."""
    made = supervisor.presets.applied("poet", Texts(prompts=["a"]))
    assert (made.options.sampling.temperature, made.options.loras, made.prompts) == (1.5, {1: 2.0}, ["a"])


@pytest.mark.parametrize("name", ["m", "alias", None, "unknown"])
def test_other_names(supervisor: Supervisor, name: str | None) -> None:
    """A request that names no preset stays as it is; a preset that says nothing changes nothing."""
    what: Any = Conversation(messages=[USER])
    assert supervisor.presets.applied(name, what) is what
    assert supervisor.presets.applied("plain", what) == what
