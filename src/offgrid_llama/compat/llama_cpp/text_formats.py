"""Chat formats that are texts around messages, one for each kind of model: a table.

The texts are those that llama-cpp-python 0.3.36 writes, character by character, because it is prompts that models are
trained on. Where it leaves something out, so do these: ``open-orca`` has no messages but those of the roles "User" and
"Assistant", and ``intel`` has no system message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .chat_formatter import ChatFormatter, ChatFormatterResponse, Messages, text_of

__all__ = ["TEXT_FORMATS"]

SYSTEM = "{system}"
"""The place of the system's message in a text."""


@dataclass(frozen=True)
class TextFormat:
    """A chat format: a head, a text for each message, and the beginning of the answer.

    Attributes:
        roles: the text that begins a message, by its role. Messages of other roles are left out.
        head: the text before all messages; in it ``{system}`` is the first message of the system.
        default: the system's message where the conversation has none.
        between: the text between a message's beginning and its content.
        ends: the texts that end messages, in turn.
        empty: the text behind the beginning of a message without content.
        answers: whether the prompt ends with the beginning of a message of the role "assistant".
        tail: the end of the prompt.
        stop: the text that ends an answer.
    """

    roles: Mapping[str, str]
    head: str = ""
    default: str = ""
    between: str = ""
    ends: tuple[str, ...] = ("",)
    empty: str = ""
    answers: str = "assistant"
    tail: str = ""
    stop: str | None = None

    def __call__(self, messages: Messages, **kwargs: Any) -> ChatFormatterResponse:
        """Return the prompt for a conversation."""
        texts = [self.head.replace(SYSTEM, system_message(messages) or self.default)]
        known = [message for message in messages if message["role"] in self.roles]
        for at, message in enumerate(known):
            content = text_of(message)
            end = self.ends[at % len(self.ends)]
            texts += [self.roles[message["role"]], self.between + content + end if content else self.empty]
        if self.answers:
            texts += [self.roles[self.answers], self.empty]
        return ChatFormatterResponse("".join(texts) + self.tail, self.stop)


def system_message(messages: Messages) -> str:
    """Return the text of the first message of the system, "" if there is none."""
    return next((text_of(message) for message in messages if message["role"] == "system"), "")


def _turns(user: str, assistant: str) -> dict[str, str]:
    return {"user": user, "assistant": assistant}


def _lines(user: str, assistant: str, end: str, **rest: Any) -> TextFormat:
    """Return a format like ChatML: a line with the role, and the content below it."""
    empty = between = "\n"
    return TextFormat(_turns(user, assistant), between=between, ends=(end + "\n",), empty=empty, **rest)


def _colons(user: str, assistant: str, *ends: str, **rest: Any) -> TextFormat:
    """Return a format in which a colon follows the role."""
    return TextFormat(_turns(user, assistant), between=": ", ends=ends, empty=":", **rest)


# What each model was trained on. The names of the functions are those of llama-cpp-python.
format_alpaca = _colons("### Instruction", "### Response", "\n\n", "</s>", head="{system}\n\n", answers="")
format_baichuan = TextFormat(_turns("<reserved_102>", "<reserved_103>"), head="{system}")
format_baichuan2 = TextFormat(_turns("<reserved_106>", "<reserved_107>"), head="{system}")
format_chatglm3 = TextFormat(
    _turns("<|user|>", "<|assistant|>"), head="<|system|>\n{system}", between="\n ", stop="</s>"
)  # fmt: skip
format_chatml = _lines(
    "<|im_start|>user", "<|im_start|>assistant", "<|im_end|>",
    head="<|im_start|>system\n{system}<|im_end|>\n", stop="<|im_end|>",
)  # fmt: skip
format_gemma = TextFormat(
    _turns("<start_of_turn>user\n", "<start_of_turn>model\n"), ends=("<end_of_turn>\n",), stop="<end_of_turn>\n"
)  # fmt: skip
format_intel = _colons("### User:", "### Assistant:", "\n", head="### System:\n{system_message}\n")
format_llama3 = TextFormat(
    {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user", "assistant")},
    ends=("<|eot_id|>",), stop="<|eot_id|>",
)  # fmt: skip
format_mistrallite = TextFormat(
    _turns("<|prompter|>", "</s>\n<|assistant|>"), head="<|system|>{system}</s>", ends=(" ",)
)  # fmt: skip
format_oasst_llama = TextFormat(
    _turns("<|prompter|>", "<|assistant|>"), head="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n", ends=("</s>",)
)  # fmt: skip
format_open_orca = TextFormat(
    {"User": "User", "Assistant": "Assistant"}, between=": ", ends=("<|end_of_turn|>\n",), empty=": ",
    answers="Assistant", stop="User",
    head=(
        "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be sure you get "
        "the right answer. If you make a mistake or encounter an error in your thinking, say so out loud and attempt to "
        "correct it. If you don't know or aren't sure about something, say so clearly. You will act as a professional "
        "logician, mathematician, and physicist. You will also act as the most appropriate type of expert to answer any "
        "particular question or solve the relevant problem; state which expert type your are, if so. Also think of any "
        "particular named expert that would be ideal to answer the relevant question or solve the relevant problem; name "
        "and act as them, if appropriate.<|end_of_turn|>\n"
    ),
)  # fmt: skip
format_openbuddy = _colons(
    "User", "Assistant", "\n",
    head=(
        "You are a helpful, respectful and honest INTP-T AI Assistant named Buddy. You are talking to a human User.\n"
        "Always answer as helpfully and logically as possible, while being safe. Your answers should not include any "
        "harmful, political, religious, unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that "
        "your responses are socially unbiased and positive in nature.\n"
        "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
        "not correct. If you don't know the answer to a question, please don't share false information.\n"
        "You can speak fluently in many languages, for example: English, Chinese.\n"
        "You cannot access the internet, but you have vast knowledge, cutoff: 2021-09.\n"
        "You are trained by OpenBuddy team, (https://openbuddy.ai, https://github.com/OpenBuddy/OpenBuddy), you are based "
        "on LLaMA and Falcon transformers model, not related to GPT or OpenAI.\n\n\n"
    ),
)  # fmt: skip
format_openchat = _lines(
    "GPT4 Correct User: ", "<|end_of_turn|>GPT4 Correct Assistant: ", "<|end_of_turn|>",
    head="{system}<|end_of_turn|><|end_of_turn|>\n", stop="<|end_of_turn|>",
)  # fmt: skip
format_phind = _colons(
    "### User Message", "### Assistant", "\n\n",
    head="### System Prompt\nYou are an intelligent programming assistant.\n\n",
)  # fmt: skip
format_pygmalion = _lines("<|user|>", "<|model|>", "\n", head="<|system|>{system}\n\n", stop="\n")
format_qwen = _lines(
    "<|im_start|>user", "<|im_start|>assistant", "<|im_end|>",
    head="<|im_start|>system\n{system}<|im_end|>\n", default="You are a helpful assistant.", stop="<|endoftext|>",
)  # fmt: skip
format_redpajama_incite = _colons("<human>", "<bot>", "\n", head="{system}\n", stop="<human>")
format_saiga = TextFormat(
    {role: f"<s>{role}\n" for role in ("user", "bot", "system")}, ends=("</s>",), answers="", tail="<s>bot"
)  # fmt: skip
format_snoozy = _colons(
    "### Prompt", "### Response", "\n", head="{system}\n", stop="###",
    default=(
        "The prompt below is a question to answer, a task to complete, or a conversation to respond to; decide which and "
        "write an appropriate response."
    ),
)  # fmt: skip
format_vicuna = _colons(
    "USER", "ASSISTANT", " ", "</s>",
    head=(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        "polite answers to the user's questions. "
    ),
)  # fmt: skip
format_zephyr = _lines("<|user|>\n", "<|assistant|>\n", "</s>", head="<|system|>\n{system}</s>\n", stop="</s>")

_LLAMA2 = TextFormat(
    _turns("<s>[INST]", "[/INST]"), ends=("  ", " </s>"), empty=" ", answers="", tail="[/INST]"
)  # fmt: skip
_LLAMA2_FROM_SECOND = replace(_LLAMA2, ends=_LLAMA2.ends[::-1])
_MISTRAL = {"user": ("[INST] ", ""), "assistant": (" [/INST]", "</s>")}


def format_llama2(messages: Messages, **kwargs: Any) -> ChatFormatterResponse:
    """Return the prompt for a conversation: the first message has no beginning where the system's comes before it."""
    system = system_message(messages)
    turns = [message for message in messages if message["role"] in _LLAMA2.roles]
    if not system:
        return ChatFormatterResponse(" " + _LLAMA2(turns).prompt)
    head = f"[INST] <<SYS>>\n{system}\n<</SYS>> "
    if turns:
        head += text_of(turns[0]) + " "
    return ChatFormatterResponse(head + _LLAMA2_FROM_SECOND(turns[1:]).prompt)


def format_mistral_instruct(messages: Messages, **kwargs: Any) -> ChatFormatterResponse:
    """Return the prompt for a conversation: the text that ends a user's message begins the answer."""
    prompt = ""
    for message in messages:
        if message["role"] in _MISTRAL and message.get("content") is not None:
            begin, end = _MISTRAL[message["role"]]
            prompt += begin + text_of(message) + end
    return ChatFormatterResponse(prompt + " [/INST]", "</s>")


TEXT_FORMATS: dict[str, ChatFormatter] = {
    "llama-2": format_llama2,
    "llama-3": format_llama3,
    "alpaca": format_alpaca,
    "qwen": format_qwen,
    "vicuna": format_vicuna,
    "oasst_llama": format_oasst_llama,
    "baichuan-2": format_baichuan2,
    "baichuan": format_baichuan,
    "openbuddy": format_openbuddy,
    "redpajama-incite": format_redpajama_incite,
    "snoozy": format_snoozy,
    "phind": format_phind,
    "intel": format_intel,
    "open-orca": format_open_orca,
    "mistrallite": format_mistrallite,
    "zephyr": format_zephyr,
    "pygmalion": format_pygmalion,
    "chatml": format_chatml,
    "mistral-instruct": format_mistral_instruct,
    "chatglm3": format_chatglm3,
    "openchat": format_openchat,
    "saiga": format_saiga,
    "gemma": format_gemma,
}
