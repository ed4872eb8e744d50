"""Tools, and calls of them in random numbers."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from helpers.golden_chats import TEMPLATES, known
from offgrid_llama.chat.tools.call_format import ToolFormat
from offgrid_llama.chat.tools.call_reader import ToolReader
from offgrid_llama.chat.tools.deltas import gathered
from offgrid_llama.chat.tools.tool import Tool

WRITTEN = sorted(path.name for path in TEMPLATES.glob("*.jinja") if known(path.name)[1].writes_calls)


def object_of(required: list[str], **types: object) -> dict[str, Any]:
    """Return the schema of an object, whose properties have a type, or one of some values."""
    properties = {
        name: {"description": f"The {name}.", **({"type": kind} if isinstance(kind, str) else {"enum": kind})}
        for name, kind in types.items()
    }
    return {"type": "object", "properties": properties, "required": required}


WEATHER = Tool("get_weather", "The weather of a city.", object_of(["city"], city="string", days="integer"))
CLOCK = Tool("clock", "The time.", object_of([], utc="boolean"))
UNIT = Tool("unit", "Choose.", object_of(["unit", "scale"], unit=["celsius", "kelvin"], scale="number"))
TOOLS = [WEATHER, CLOCK, UNIT]


texts = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x3FF, exclude_characters="<>[]{}|'\"`\\\x7f"), max_size=30
)
words = texts.map(lambda text: f"a{text.strip()}z")
arguments_of = {
    "get_weather": st.fixed_dictionaries({"city": words}, optional={"days": st.integers(-1000, 1000)}),
    "clock": st.fixed_dictionaries({}, optional={"utc": st.booleans()}),
    "unit": st.fixed_dictionaries(
        {"unit": st.sampled_from(["celsius", "kelvin"]), "scale": st.sampled_from([0.5, -1.25, 1000.0])}
    ),
}
calls = st.lists(
    st.sampled_from(sorted(arguments_of)).flatmap(lambda name: st.tuples(st.just(name), arguments_of[name])),
    min_size=1, max_size=3,
)  # fmt: skip


def read_calls(form: ToolFormat, text: str, step: int) -> tuple[str, list[tuple[str, Any]]]:
    """Return content and calls of a text."""
    reader = ToolReader(form, TOOLS, lambda index: f"id{index}")
    told = [reader.push(text[at : at + step]) for at in range(0, len(text), step)]
    told.append(reader.finish())
    found = gathered(delta for each in told for delta in each.calls)
    return "".join(each.content for each in told), [(call.name, call.parsed) for call in found]
