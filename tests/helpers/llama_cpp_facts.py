"""What the modules of a package with llama-cpp-python's names do with given conversations and completions, as plain data.

The same functions look at theirs, for the data that is kept, and at ours.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np

FORMATS = {
    "llama-2": "format_llama2", "llama-3": "format_llama3", "alpaca": "format_alpaca", "qwen": "format_qwen",
    "vicuna": "format", "oasst_llama": "format_oasst_llama", "baichuan-2": "format_baichuan2",
    "baichuan": "format_baichuan", "openbuddy": "format_openbuddy", "redpajama-incite": "format_redpajama_incite",
    "snoozy": "format_snoozy", "phind": "format_phind", "intel": "format_intel", "open-orca": "format_open_orca",
    "mistrallite": "format_mistrallite", "zephyr": "format_zephyr", "pygmalion": "format_pygmalion",
    "chatml": "format_chatml", "mistral-instruct": "format_mistral_instruct", "chatglm3": "format_chatglm3",
    "openchat": "format_openchat", "saiga": "format_saiga", "gemma": "format_gemma",
}  # fmt: skip
"""The functions of the formats, by the formats' names."""

SPELLED = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "b": "bot", "U": "User", "A": "Assistant"}


def conversation(*turns: str | tuple[str, Any]) -> list[dict[str, Any]]:
    """Return messages: of texts that begin with the letter of a role and a colon, or of letters and contents."""
    pairs = [turn if isinstance(turn, tuple) else (turn[0], turn[2:]) for turn in turns]
    return [{"role": SPELLED[letter], "content": content} for letter, content in pairs]


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "user": conversation("u:Hi"),
    "system": conversation("s:Be brief."),
    "system and user": conversation("s:Be brief.", "u:Hi"),
    "turns": conversation("u:One?", "a:1", "u:Two?"),
    "system and turns": conversation("s:Count.", "u:One?", "a:1", "u:Two?", "a:2", "u:Three?"),
    "the assistant last": conversation("s:Count.", "u:One?", "a:It is"),
    "the assistant first": conversation("a:Welcome.", "u:Hi"),
    "one role twice": conversation("u:One.", "u:Two.", "a:A", "a:B", "u:C"),
    "the system late, and twice": conversation("u:Hi", "s:First.", "a:Yes", "s:Second.", "u:Go"),
    "empty": conversation("s:", "u:", "a:", "u:x", "a:"),
    "None": conversation(("s", None), ("u", None), ("a", None), ("u", "x")),
    "Unicode": conversation("s:Sprich Deutsch. ß", "u:你好 👩‍👩‍👧 é", "a:Grüße"),
    "signs of formats": conversation("s:{system_message} {0} %s", "u:</s>{system}<|im_end|>", "a:a\n\n b ", "u: \n"),
    "other roles": conversation("u:Call.", "t:42", "b:I am", "U:Mr", "A:Ms"),
    "a part of text": conversation(("u", [{"type": "text", "text": "Look."}])),
    "no content": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": []}],
    "no role": [{"content": "x"}],
}


def told(call: Any) -> Any:
    """Return what a call returns, or which error of Python's it raises."""
    try:
        return call()
    except Exception as error:
        return {"error": next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")}


def prompt_facts(formatter: Any, messages: Any, **keywords: Any) -> Any:
    """Return the response of a formatter."""

    def response() -> dict[str, Any]:
        answer = formatter(messages=messages, **keywords)
        criteria = answer.stopping_criteria
        return {
            "prompt": answer.prompt,
            "stop": answer.stop,
            "added_special": answer.added_special,
            **({"ends": [bool(criteria(np.array([1, each]), np.zeros(1))) for each in range(4)]} if criteria else {}),
        }

    return told(response)


def format_facts(module: Any) -> dict[str, Any]:
    """Return the responses of all formats, by format and conversation."""
    return {
        f"{name}: {title}": prompt_facts(getattr(module, function), messages)
        for name, function in FORMATS.items()
        for title, messages in CONVERSATIONS.items()
    }


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% if m.role == 'assistant' %}"
    "{{ eos_token }}{% endif %}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEMPLATES = {
    "plain": TEMPLATE,
    "blocks": "  {% for m in messages %}\n    {{ m.content }}\n  {% endfor %}\nend",
    "refuses": "{{ raise_exception('no') }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "variables": "{{ thinking }}|{{ functions }}|{{ function_call }}|{{ tool_choice }}|{{ tools }}|{{ none }}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "It's <b>", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
TITLES = ["user", "system and turns", "Unicode", "the assistant last"]


def template_facts(module: Any) -> dict[str, Any]:
    """Return what formatters of templates, and guesses of formats, give."""
    facts: dict[str, Any] = {}
    for name, template in TEMPLATES.items():
        for title in TITLES:
            messages = CONVERSATIONS[title]
            formatter = module.Jinja2ChatFormatter(template, eos_token="</s>", bos_token="<s>")
            facts[f"{name}: {title}"] = prompt_facts(formatter, messages, tools=[TOOL], thinking=True)
        config = {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"}
        for adds in (True, False):
            if name not in (
                "refuses",
                "loop controls",
                "generation",
                "json",
            ):  # these need more than jinja2 has by itself
                formatter = module.hf_tokenizer_config_to_chat_formatter(config, adds)
                facts[f"{name}, config, {adds}"] = prompt_facts(formatter, CONVERSATIONS["turns"], thinking=1)
    quiet = module.Jinja2ChatFormatter(TEMPLATE, "e", "b", add_generation_prompt=False, stop_token_ids=[2, 3])
    facts["stop tokens"] = prompt_facts(quiet, CONVERSATIONS["turns"])
    for name in dir(module):
        if name.endswith(("_TEMPLATE", "_TOKEN")) and not name.startswith("_"):
            facts[name] = value = getattr(module, name)
            facts[f"guess of {name}"] = module.guess_chat_format_from_gguf_metadata({"tokenizer.chat_template": value})
    facts["guess of nothing"] = module.guess_chat_format_from_gguf_metadata({"general.name": "x"})
    return facts


class FakeLlama:
    """Completes prompts with texts that are given, and keeps what it was asked.

    Attributes:
        calls: the prompts and the keywords.
        tokenizer_: the tokenizer, as a ``Llama`` has it.
    """

    verbose = False
    tokenizer_: Any = None

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.calls: list[dict[str, Any]] = []

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[Any]:
        return [text.decode(), add_bos, special]

    def create_completion(self, prompt: Any, **keywords: Any) -> Any:
        keywords["grammar"] = keywords.get("grammar") is not None
        self.calls.append({"prompt": prompt, **keywords})
        text = self.texts.pop(0)
        logprobs = _logprobs(text) if keywords.get("logprobs") else None
        if keywords["stream"]:
            return _chunks(len(self.calls), text, logprobs)
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        return {**_completion(len(self.calls), text, logprobs, "stop"), "usage": usage}


def _logprobs(text: str) -> dict[str, Any]:
    return {
        "tokens": [text, "!"],
        "text_offset": [0, 1],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{text: -0.5, "x": -2.0}, {"!": -1.5}],
    }


def _completion(at: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason}
    return {"id": f"cmpl-{at}", "object": "text_completion", "created": 100 + at, "model": "fake", "choices": [choice]}


def _chunks(at: int, text: str, logprobs: Any) -> Iterator[dict[str, Any]]:
    half = len(text) // 2
    yield _completion(at, text[:half], logprobs, None)
    yield _completion(at, text[half:], logprobs, None)
    yield _completion(at, "", None, "length")


ASKED = CONVERSATIONS["system and user"]
CALLED = [
    *CONVERSATIONS["system and user"],
    {
        "role": "assistant", "content": "So <that>",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}],
    },
    {"role": "tool", "content": "rain", "tool_call_id": "1"},
    {"role": "user", "content": "Isn't it & more?"},
]  # fmt: skip
NAMED = {"type": "function", "function": {"name": "weather"}}
ARGUMENTS = '{"city": "Ulm"}'
SAMPLED = {
    "temperature": 0.7, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "typical_p": 0.9, "max_tokens": 9, "presence_penalty": 0.1,
    "frequency_penalty": 0.2, "repeat_penalty": 1.0, "tfs_z": 0.8, "mirostat_mode": 2, "mirostat_tau": 4.0,
    "mirostat_eta": 0.2, "model": "m", "seed": 7, "logit_bias": {"5": 1.0}, "logprobs": True, "top_logprobs": 2,
}  # fmt: skip

REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampling": SAMPLED,
    "logprobs off": {"logprobs": False, "top_logprobs": 2},
    "stop": {"stop": "END"},
    "stops": {"stop": ["END", "Z"]},
    "stop None": {"stop": None},
    "json": {"response_format": {"type": "json_object"}},
    "json schema": {"response_format": {"type": "json_object", "schema": SCHEMA}},
    "json, no schema": {"response_format": {"type": "json_object", "schema": {"type": "nonsense"}}},
    "text": {"response_format": {"type": "text"}},
    "tool": {"tools": [OTHER, TOOL], "tool_choice": NAMED},
    "tool with logprobs": {"tools": [TOOL], "tool_choice": NAMED, "logprobs": True, "top_logprobs": 1},
    "tools": {"tools": [OTHER, TOOL]},
    "tools, none": {"tools": [TOOL], "tool_choice": "none"},
    "functions": {"functions": [TOOL["function"]], "function_call": {"name": "weather"}},
    "functions, none": {"functions": [TOOL["function"]], "function_call": "none"},
    "no such tool": {"tools": [OTHER], "tool_choice": NAMED},
    "no tools": {"tools": [], "tool_choice": "auto"},
    "after a call": {"tools": [OTHER, TOOL], "tool_choice": NAMED, "messages": CALLED},
    "after a call, plain": {"messages": CALLED},
}
TEXTS = {
    "auto, a message": ["message", "It rains."],
    "auto, a call": ["functions.weather", ARGUMENTS, ""],
    "auto, two calls": ["functions.weather", ARGUMENTS, "functions.time", "{}", ""],
    "auto, an unknown function": ["functions.no"],
}
HANDLERS = ["chatml", "llama-2", "chatml-function-calling", "a template"]


def handler_facts(module: Any) -> dict[str, Any]:
    """Return what chat handlers ask for, and what they answer, by handler and request."""
    auto = {"tools": [OTHER, TOOL], "tool_choice": "auto"}
    facts = {}
    for name in HANDLERS:
        requests = {title: (request, [ARGUMENTS]) for title, request in REQUESTS.items()}
        if name == "chatml-function-calling":
            requests |= {title: (auto, texts) for title, texts in TEXTS.items()}
        if name == "a template":
            handler = module.Jinja2ChatFormatter(TEMPLATE, "</s>", "<s>").to_chat_handler()
            requests = {title: requests[title] for title in ("plain", "stop", "tools")}
        else:
            handler = module.get_chat_completion_handler(name)
        for title, (request, texts) in requests.items():
            for stream in (False, True):
                llama = FakeLlama(*texts)
                answer = told(lambda: _answer(handler, llama, request, stream))  # noqa: B023 - it is called at once
                facts[f"{name}: {title}{', streamed' if stream else ''}"] = {"asked": llama.calls, "answer": answer}
    return facts


def _answer(handler: Any, llama: FakeLlama, request: dict[str, Any], stream: bool) -> Any:
    answer = handler(llama=llama, **{"messages": ASKED, "stream": stream, **request})
    return list(answer) if stream else answer


def _is_typed_dict(kind: Any) -> bool:
    return hasattr(kind, "__total__")  # typing knows only its own, not those of typing_extensions


def type_text(kind: Any) -> str:
    """Return a type as text, which is the same for all ways to write it."""
    if kind in (None, type(None)):
        return "None"
    if _is_typed_dict(kind):
        return "a TypedDict"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"Literal{sorted(arguments)}"
    if not arguments:
        return str(getattr(kind, "__name__", kind))
    texts = list(map(type_text, arguments))
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(texts)}]"
    return " | ".join(sorted(set(texts)))


def type_facts(module: Any) -> dict[str, Any]:
    """Return the fields of each TypedDict, and the text of each other type."""
    facts: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name in dir(typing) or name in ("NotRequired", "annotations"):
            continue
        if _is_typed_dict(value):
            hints = typing.get_type_hints(value)
            facts[name] = {
                field: [type_text(kind), field in value.__required_keys__] for field, kind in sorted(hints.items())
            }
        elif not inspect.ismodule(value):
            facts[name] = type_text(value)
    return facts


CALLABLES = {
    "llama_cache": ["LlamaRAMCache", "LlamaDiskCache"],
    "llama_chat_format": [
        "ChatFormatterResponse", "Jinja2ChatFormatter", "Jinja2ChatFormatter.__call__", "Jinja2ChatFormatter.tojson",
        "Jinja2ChatFormatter.strftime_now", "Jinja2ChatFormatter.to_chat_handler",
        "chat_formatter_to_chat_completion_handler",
        "chatml_function_calling", "functionary_chat_handler", "functionary_v1_v2_chat_handler",
        "get_chat_completion_handler", "guess_chat_format_from_gguf_metadata",
        "hf_autotokenizer_to_chat_completion_handler", "hf_autotokenizer_to_chat_formatter",
        "hf_tokenizer_config_to_chat_completion_handler", "hf_tokenizer_config_to_chat_formatter",
        "register_chat_completion_handler", "register_chat_format",
        "LlamaChatCompletionHandlerRegistry.register_chat_completion_handler",
        "LlamaChatCompletionHandlerRegistry.unregister_chat_handler",
        "LlamaChatCompletionHandlerRegistry.get_chat_completion_handler_by_name", *FORMATS.values(),
    ],
    "llama_grammar": [
        "LlamaGrammar", "LlamaGrammar.from_string", "LlamaGrammar.from_file", "LlamaGrammar.from_json_schema",
        "json_schema_to_gbnf",
    ],
    "llama_speculative": [
        "LlamaDraftModel.__call__", "LlamaPromptLookupDecoding", "LlamaPromptLookupDecoding.find_candidate_pred_tokens",
    ],
    "llama_tokenizer": [
        f"{name}.{method}"
        for name in ("BaseLlamaTokenizer", "LlamaTokenizer", "LlamaHFTokenizer")
        for method in ("__init__", "tokenize", "detokenize")
    ] + ["LlamaTokenizer.encode", "LlamaTokenizer.decode", "LlamaTokenizer.from_ggml_file",
         "LlamaHFTokenizer.from_pretrained"],
}  # fmt: skip


def signature_facts(modules: Any) -> dict[str, Any]:
    """Return the parameters of public functions and classes: their names, with the defaults where there are any."""
    facts = {}
    for module, names in CALLABLES.items():
        for name in names:
            value = getattr(modules, module)
            for part in name.split("."):
                value = getattr(value, part)
            parameters = inspect.signature(value).parameters.values()
            facts[f"{module}.{name}"] = {
                each.name: repr(each.default) if each.default is not each.empty else "required"
                for each in parameters
                if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
            }
    handler = modules.llama_chat_format.get_chat_completion_handler("chatml")
    facts["the handler of a formatter"] = {
        each.name: repr(each.default)
        for each in inspect.signature(handler).parameters.values()
        if each.default != each.empty
    }
    return facts


def lookup_facts(module: Any) -> list[Any]:
    """Return the guesses of prompt lookup after random tokens."""
    rng = np.random.default_rng(1)
    facts = []
    for _ in range(60):
        tokens = rng.integers(0, int(rng.integers(1, 6)), int(rng.integers(0, 16))).astype(np.intc)
        most, guesses = int(rng.integers(0, 5)), int(rng.integers(0, 8))
        found = module.LlamaPromptLookupDecoding.find_candidate_pred_tokens(tokens, most, guesses)
        facts.append([tokens.tolist(), most, guesses, str(found.dtype), found.tolist()])
    return facts
