"""An agent: a conversation whose model calls functions, gets their errors as well, and answers in a shape of yours.

python docs/recipes/agent.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

import offgrid_llama as og

STATIONS = {"Bern": 18, "Oslo": 4, "Cairo": 31}
City = Literal["Bern", "Oslo", "Cairo", "Rome"]


def temperature(city: City) -> str:
    """Return the temperature in a city, in degrees Celsius."""
    if city not in STATIONS:
        raise LookupError(f"there is no station in {city}; the stations are {', '.join(STATIONS)}")
    return f"{STATIONS[city]} degrees"


@dataclass
class Report:
    """The answer's shape."""

    city: City
    degrees: Annotated[int, Field(ge=-90, le=60)]


def main() -> None:
    """Ask, let the model call, and read its report."""
    with og.Engine("smollm2-135m-instruct", n_ctx=8192, n_seq_max=2) as engine:
        chat = og.Chat(engine, tools=[temperature], max_tokens=128, temperature=0)
        first = chat.say("How warm is it in Oslo?", tool_choice="required", parallel_tool_calls=False).result()
        (call,) = first.tool_calls
        print("the model calls", call.name, call.parsed)
        try:
            found = temperature(**call.parsed)
        except Exception as error:  # the model is told, and can call again
            found = f"{type(error).__name__}: {error}"
        chat.add_tool_result(call, found)
        print("it answers:", chat.reply(tool_choice="none").result().content)
        report = chat.say("Report this.", tool_choice="none", response_format=Report).result().parsed()
        print("and reports:", report)


if __name__ == "__main__":
    main()
