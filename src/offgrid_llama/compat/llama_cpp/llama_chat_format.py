"""Chat formats and chat handlers: all names of llama-cpp-python's module.

Handlers take what a ``Llama`` offers under public names, ``tokenize``, ``create_completion`` and ``verbose``, so any object
with these will do.
"""

from __future__ import annotations

from collections.abc import Mapping

from .chat_formatter import ChatFormatter, ChatFormatterResponse
from .chat_handlers import chat_formatter_to_chat_completion_handler, register_chat_format
from .chat_registry import (
    LlamaChatCompletionHandler,
    LlamaChatCompletionHandlerNotFoundException,
    LlamaChatCompletionHandlerRegistry,
    get_chat_completion_handler,
    register_chat_completion_handler,
)
from .chatml_function_calling import chatml_function_calling
from .functionary import functionary_chat_handler
from .functionary_v1_v2 import functionary_v1_v2_chat_handler
from .picture_handlers import (
    Gemma4ChatHandler,
    Llama3VisionAlpha,
    Llama3VisionAlphaChatHandler,
    Llava15ChatHandler,
    Llava16ChatHandler,
    MiniCPMv26ChatHandler,
    MoondreamChatHandler,
    MTMDChatHandler,
    NanoLlavaChatHandler,
    ObsidianChatHandler,
    Qwen25VLChatHandler,
)
from .template_formatters import (
    Jinja2ChatFormatter,
    hf_autotokenizer_to_chat_completion_handler,
    hf_autotokenizer_to_chat_formatter,
    hf_tokenizer_config_to_chat_completion_handler,
    hf_tokenizer_config_to_chat_formatter,
)
from .text_formats import (
    TEXT_FORMATS,
    format_alpaca,
    format_baichuan,
    format_baichuan2,
    format_chatglm3,
    format_chatml,
    format_gemma,
    format_intel,
    format_llama2,
    format_llama3,
    format_mistral_instruct,
    format_mistrallite,
    format_oasst_llama,
    format_open_orca,
    format_openbuddy,
    format_openchat,
    format_phind,
    format_pygmalion,
    format_qwen,
    format_redpajama_incite,
    format_saiga,
    format_snoozy,
    format_vicuna,
    format_zephyr,
)

__all__ = [
    "CHATML_BOS_TOKEN", "CHATML_CHAT_TEMPLATE", "CHATML_EOS_TOKEN", "LLAMA3_INSTRUCT_CHAT_TEMPLATE",
    "MISTRAL_INSTRUCT_BOS_TOKEN", "MISTRAL_INSTRUCT_CHAT_TEMPLATE", "MISTRAL_INSTRUCT_EOS_TOKEN",
    "MIXTRAL_INSTRUCT_CHAT_TEMPLATE", "ChatFormatter", "ChatFormatterResponse", "Gemma4ChatHandler", "Jinja2ChatFormatter",
    "Llama3VisionAlpha", "Llama3VisionAlphaChatHandler", "LlamaChatCompletionHandler",
    "LlamaChatCompletionHandlerNotFoundException", "LlamaChatCompletionHandlerRegistry", "Llava15ChatHandler",
    "Llava16ChatHandler", "MTMDChatHandler", "MiniCPMv26ChatHandler", "MoondreamChatHandler", "NanoLlavaChatHandler",
    "ObsidianChatHandler", "Qwen25VLChatHandler", "chat_formatter_to_chat_completion_handler", "chatml_function_calling",
    "format", "format_alpaca", "format_baichuan", "format_baichuan2", "format_chatglm3", "format_chatml", "format_gemma",
    "format_intel", "format_llama2", "format_llama3", "format_mistral_instruct", "format_mistrallite", "format_oasst_llama",
    "format_open_orca", "format_openbuddy", "format_openchat", "format_phind", "format_pygmalion", "format_qwen",
    "format_redpajama_incite", "format_saiga", "format_snoozy", "format_zephyr", "functionary_chat_handler",
    "functionary_v1_v2_chat_handler", "get_chat_completion_handler",
    "guess_chat_format_from_gguf_metadata", "hf_autotokenizer_to_chat_completion_handler",
    "hf_autotokenizer_to_chat_formatter", "hf_tokenizer_config_to_chat_completion_handler",
    "hf_tokenizer_config_to_chat_formatter", "register_chat_completion_handler", "register_chat_format",
]  # fmt: skip

format = format_vicuna  # noqa: A001 - their name

# Chat templates, as they come with the models of these names.
CHATML_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_BOS_TOKEN = "<s>"  # noqa: S105
CHATML_EOS_TOKEN = "<|im_end|>"  # noqa: S105
_MISTRAL_TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token<END>}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_INSTRUCT_CHAT_TEMPLATE = _MISTRAL_TURNS.replace("<END>", " + ' ' ")
MISTRAL_INSTRUCT_BOS_TOKEN = "<s>"  # noqa: S105
MISTRAL_INSTRUCT_EOS_TOKEN = "</s>"  # noqa: S105
MIXTRAL_INSTRUCT_CHAT_TEMPLATE = _MISTRAL_TURNS.replace("<END>", "")
LLAMA3_INSTRUCT_CHAT_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_FORMATS_OF_TEMPLATES = {
    CHATML_CHAT_TEMPLATE: "chatml",
    MISTRAL_INSTRUCT_CHAT_TEMPLATE: "mistral-instruct",
    MIXTRAL_INSTRUCT_CHAT_TEMPLATE: "mistral-instruct",
    LLAMA3_INSTRUCT_CHAT_TEMPLATE: "llama-3",
}


def guess_chat_format_from_gguf_metadata(metadata: Mapping[str, str]) -> str | None:
    """Return the name of the chat format that is a model's own chat template, None if none is known to be."""
    return _FORMATS_OF_TEMPLATES.get(metadata.get("tokenizer.chat_template", ""))


for _name, _formatter in TEXT_FORMATS.items():
    register_chat_format(_name)(_formatter)
register_chat_completion_handler("chatml-function-calling")(chatml_function_calling)
register_chat_completion_handler("functionary")(functionary_chat_handler)
for _name in ("functionary-v1", "functionary-v2"):
    register_chat_completion_handler(_name)(functionary_v1_v2_chat_handler)
