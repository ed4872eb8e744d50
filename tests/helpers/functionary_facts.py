"""What chat handlers for functionary models ask for and answer, as plain data.

The same functions look at llama-cpp-python's, for the data that is kept, and at ours.
"""

from __future__ import annotations

import json
import re
import types
from typing import Any

from .llama_cpp_facts import ARGUMENTS, ASKED, CALLED, CONVERSATIONS, NAMED, OTHER, SAMPLED, TOOL, FakeLlama, told

RICH = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book a trip.",
        "parameters": {
            "type": "object",
            "$defs": {
                "Place": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "at": {"type": "array", "items": {"type": "number"}}},
                },
                "Class": {"enum": ["first", "second", 3]},
            },
            "properties": {
                "to": {"$ref": "#/$defs/Place", "description": "Where it ends."},
                "by": {"type": "string", "enum": ["rail", "bus"]},
                "seats": {"type": "array", "items": {"$ref": "#/$defs/Class"}},
                "lists": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
                "who": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "bags": {
                            "type": "array",
                            "items": {"type": "object", "properties": {"kg": {"type": "number"}}},
                        },
                    },
                },
                "open": {"type": "object"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
            "required": ["to", "by"],
        },
    },
}
"""A tool whose parameters have all kinds of schemas that are told in their own way."""
LOOSE = {
    "type": "function",
    "function": {
        "name": "note",
        "description": None,
        "parameters": {
            "$defs": {"Line": {"type": "string"}},
            "properties": {"line": {"$ref": "#/$defs/Line"}, "at": {"type": ["integer", "null"]}},
        },
    },
}
"""A tool whose types llama-cpp-python cannot write."""
OLD_CALL = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": ARGUMENTS}}
SAID_CALL = {**OLD_CALL, "content": "Let me look."}
NEW_CALL: dict[str, Any] = {
    "role": "assistant", "content": None,
    "tool_calls": [{"id": "weather", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}],
}  # fmt: skip
RESULT = {"role": "function", "name": "weather", "content": "rain"}
NEW_RESULT = {"role": "tool", "tool_call_id": "weather", "content": "rain"}
FUNCTION = TOOL["function"]
ONE: dict[str, Any] = {"tools": [TOOL]}
BOTH: dict[str, Any] = {"tools": [OTHER, TOOL]}
OLD: dict[str, Any] = {"functions": [FUNCTION]}

REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampling": SAMPLED,
    "stop and format": {"stop": ["END"], "response_format": {"type": "json_object"}},
    "turns": {"messages": CONVERSATIONS["system and turns"]},
    "no tools": {"tools": []},
    "no tools, auto": {"tools": [], "tool_choice": "auto"},
    "tools, none": {**ONE, "tool_choice": "none"},
    "functions, none": {**OLD, "function_call": "none"},
    "tool": {**BOTH, "tool_choice": NAMED},
    "tool, sampling": {**SAMPLED, **ONE, "tool_choice": NAMED},
    "function": {**OLD, "function_call": {"name": "weather"}},
    "tools and functions": {"tools": [TOOL], "functions": [OTHER["function"]], "tool_choice": NAMED,
                            "function_call": {"name": "time"}},
    "all kinds of schemas": {"tools": [RICH], "tool_choice": {"type": "function", "function": {"name": "book"}}},
    "types that are lost": {"tools": [LOOSE], "tool_choice": {"type": "function", "function": {"name": "note"}}},
    "no such tool": {"tools": [OTHER], "tool_choice": NAMED},
    "required": {**OLD, "function_call": "required"},
    "no parameters": {"tools": [{"type": "function", "function": {"name": "weather"}}], "tool_choice": NAMED},
    "after a call": {"messages": [*ASKED, NEW_CALL, NEW_RESULT]},
    "after an old call": {"messages": [*ASKED, OLD_CALL, RESULT, SAID_CALL, RESULT]},
    "after a call with a text": {"messages": CALLED},
    "a null call": {"messages": [*ASKED, {"role": "assistant", "content": "Yes.", "function_call": None}]},
    "texts in parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look."}]}]},
    "an unknown role": {"messages": [{"role": "developer", "content": "x"}]},
    "no role": {"messages": [{"content": "x"}]},
}  # fmt: skip
"""Requests that are answered by one completion."""
STREAMED = ("plain", "no tools", "tools, none", "tool", "function")
"""Those of them that are also asked for as streams."""
OF_V1 = (*STREAMED, "sampling", "functions, none", "all kinds of schemas", "required", "after an old call")
"""Those of them that the handler for version 1 answers: it makes prompts as that for version 2 does."""
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. The assistant calls functions with appropriate input when necessary"
)
"""The text that all prompts have, and the kept data has not."""

CALL = "<|START_OF_FUNCTION_CALL|>"
MORE = "\n<|from|>assistant\n"
CHOICES: dict[str, dict[str, tuple[dict[str, Any], list[str]]]] = {
    "functionary": {
        "a call": (ONE, [" to=functions.weather:", ARGUMENTS]),
        "an old call": ({**OLD, "function_call": "auto"}, [" to=functions.weather:", ARGUMENTS]),
        "an unknown function": (ONE, [" to=functions.no:", "{}"]),
        "a message": (ONE, [":", "It rains."]),
    },
    "functionary-v1": {
        "a call": (ONE, [f"{CALL} weather:", f" {ARGUMENTS} "]),
        "an old call": ({**OLD, "function_call": "auto"}, [f"{CALL}weather:", ARGUMENTS]),
        "an unknown function": (ONE, [f"{CALL}no:", "{}"]),
        "a message": (ONE, ["It rains."]),
    },
    "functionary-v2": {
        "a call": (ONE, [" weather", f"{ARGUMENTS} ", ""]),
        "an old call": ({**OLD, "function_call": "auto"}, ["weather", ARGUMENTS, ""]),
        "an unknown function": (ONE, ["no", "{}", ""]),
        "a message": (ONE, [" all", " It rains."]),
        "two calls": (BOTH, ["weather", ARGUMENTS, MORE, "time", "{}", ""]),
        "two old calls": (OLD, ["weather", ARGUMENTS, MORE, "weather", "{}", ""]),
        "a call and a message": (ONE, ["weather", ARGUMENTS, MORE, "all", "It rains."]),
        "a message and a call": (ONE, ["all", f" One moment.{MORE}", "weather", ARGUMENTS, ""]),
        "a message and a call, spaced": (
            ONE, ["all", "One moment.\n<|from|> assistant\n", "weather", ARGUMENTS, ""]
        ),
        "a space in two chunks": (ONE, ["weather", '{"city": "New York at sea!"}', ""]),
    },
}  # fmt: skip
"""Requests whose answers the model chooses, by handler and title: the request, and the texts of the completions."""

DEFAULTS = {
    "temperature": 0.2, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "typical_p": 1.0, "max_tokens": None,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "repeat_penalty": 1.1, "tfs_z": 1.0, "mirostat_mode": 0,
    "mirostat_tau": 5.0, "mirostat_eta": 0.1, "model": None, "logits_processor": None,
}  # fmt: skip
"""The keywords of a completion whose defaults are not kept, to keep the data small. A completion has all of them or none."""


class FakeTokenizer:
    """A tokenizer of transformers, as far as the handlers use it.

    Args:
        special: its special tokens.
    """

    def __init__(self, *special: str) -> None:
        self.additional_special_tokens = list(special)

    def apply_chat_template(self, messages: Any, tokenize: bool) -> str:
        if tokenize:
            raise AssertionError("the handlers need a text")
        return "".join(f"{json.dumps(message, sort_keys=True)}\n" for message in messages)


TOKENIZERS = {
    "functionary": None,
    "functionary-v1": FakeTokenizer(CALL, "<|END_OF_FUNCTION_CALL|>"),
    "functionary-v2": FakeTokenizer("<|from|>", "<|recipient|>"),
}


def functionary_facts(module: Any) -> dict[str, Any]:
    """Return the completions and the answers of all requests, by handler and title."""
    facts = {}
    for name, tokenizer in TOKENIZERS.items():
        titles = OF_V1 if name == "functionary-v1" else REQUESTS
        requests = {title: (REQUESTS[title], [f" {ARGUMENTS}\n", "{}"]) for title in titles} | CHOICES[name]
        for title, (request, texts) in requests.items():
            asked: Any = None
            for stream in (False, True) if title in STREAMED or title in CHOICES[name] else (False,):
                llama = FakeLlama(*texts)
                llama.tokenizer_ = tokenizer and types.SimpleNamespace(hf_tokenizer=tokenizer)
                handler = module.get_chat_completion_handler(name)
                answer = told(lambda: _answer(handler, llama, request, stream))  # noqa: B023 - it is called at once
                before, asked = asked, _shortened(llama.calls, stream)
                found = {"asked": "the same" if asked == before else asked, "answer": answer}
                facts[f"{name}: {title}{', streamed' if stream else ''}"] = _without_ids(found)
    return facts


def _answer(handler: Any, llama: FakeLlama, request: dict[str, Any], stream: bool) -> Any:
    answer = handler(llama=llama, **json.loads(json.dumps({"messages": ASKED, "stream": stream, **request})))
    return list(answer) if stream else answer


def _shortened(calls: list[dict[str, Any]], stream: bool) -> list[dict[str, Any]]:
    """Leave out what is expected: default keywords, SYSTEM, and of each prompt what the one before had, behind a ``+``."""
    before, found = None, []
    for call in calls:
        prompt = call["prompt"].replace(SYSTEM, "SYSTEM")
        is_sampled = call.keys() >= DEFAULTS.keys()
        kept = {name: value for name, value in call.items() if not is_sampled or DEFAULTS.get(name, ...) != value}
        kept["prompt"] = prompt if before is None or not prompt.startswith(before) else "+" + prompt[len(before) :]
        before = prompt
        kept["stream"] = "as asked" if call["stream"] == stream else call["stream"]
        found.append({**kept, "is_sampled": is_sampled})
    return found


def _without_ids(found: dict[str, Any]) -> Any:
    """Return facts without the random ids of calls, and with what all answers begin with in one text."""
    for each in found["answer"] if isinstance(found["answer"], list) else [found["answer"]]:
        if "id" in each:
            each["head"] = " ".join(str(each.pop(name)) for name in ("id", "object", "created", "model"))
    return json.loads(re.sub(r'"call_[A-Za-z0-9]{24}"', '"call_ID"', json.dumps(found)))
