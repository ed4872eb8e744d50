"""Chat templates: from a conversation to the prompt that the model was trained on.

A chat template is a jinja2 program that comes with the model: foreign code. It runs in a sandbox, with limits on time,
steps, memory and output, and sees nothing but the conversation and plain values (``sandbox``).

A conversation is foreign text, too. It must not turn into control tokens, or a message could end its own turn and open
one in the system's name. So the prompt is made as parts: text that the template wrote, in which control tokens are meant,
and text that came with the conversation, in which they are not (``origin``). render() is the same text in one piece; to
tokenize that with control tokens recognized is the mistake that parts() avoids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from offgrid_llama.errors import ChatTemplateError

from .limits import RenderBudget, current_budget

if TYPE_CHECKING:
    from types import TracebackType

    from offgrid_llama.model.model import Model

__all__ = ["ChatTemplate", "PromptPart"]

SOURCE_MAX_CHARACTERS = 128 * 1024
RENDERING_MIN_BYTES = 32 * 2**20
"""The memory that a rendering may take beside that of the caller's data."""
RENDERING_BYTES_PER_DATA_BYTE = 9
"""Templates gather the conversation, cut it and join it again: they hold several copies of it at a time."""

_CONTINUE_HERE = "\ue0f0offgrid\ue0f1"  # private characters, behind a message that the model goes on with

_ROLES = frozenset({"assistant", "developer", "function", "ipython", "model", "system", "tool", "user"})
"""Words of the protocol rather than text: templates build control tokens from them, as in '<|' + role + '|>'."""


class PromptPart(NamedTuple):
    """A piece of a prompt.

    ``special`` says that the template wrote it: control tokens in ``text`` are meant as such (``parse_special=True``).
    Otherwise it came with the conversation, and the same characters are nothing but text (``parse_special=False``).

    Pieces that are tokenized one by one meet at borders where whole text would have none, and a tokenizer may then cut
    words differently. To get the tokens of the whole text, take the control tokens out of the special parts first, and
    tokenize all that is between two of them, of either kind, as one text with ``parse_special=False``.
    """

    text: str
    special: bool


class ChatTemplate:
    """A compiled chat template. It does not change, and threads may share it.

    ``source`` is the jinja2 text, of up to 131,072 characters; ``name`` is for error messages. ``bos_token`` and
    ``eos_token`` are the texts of these tokens, which many templates write out; they count as the template's.

    ``max_seconds`` of the thread's processor time, ``max_steps`` of loops, calls and the like, and ``max_output``
    characters are the limits of one rendering. Memory is limited to 32 MiB and nine times the size of what is passed in.
    Going over a limit is a ``ChatTemplateError``.

    Raises ``ChatTemplateError``, with the line, for a template that does not compile, and with the command to install it
    where jinja2 is missing.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        name: str = "",
        max_seconds: float = 2.0,
        max_steps: int = 4_000_000,
        max_output: int = 8 * 2**20,
    ) -> None:
        self.source = source
        self.name = name
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.max_seconds = max_seconds
        self.max_steps = max_steps
        self.max_output = max_output
        if len(source) > SOURCE_MAX_CHARACTERS:
            raise ChatTemplateError(self._message(f"{len(source):,} characters; {SOURCE_MAX_CHARACTERS:,} are allowed"))
        try:
            from . import sandbox
        except ImportError as error:
            message = "chat templates need jinja2: pip install 'offgrid-llama[chat]'"
            raise ChatTemplateError(message) from error
        problem = ""
        try:
            self._template = sandbox.compile_template(source)
        except Exception as error:
            line = getattr(error, "lineno", None)
            problem = "nested too deeply" if isinstance(error, RecursionError) else _first_line(error)
            problem = f"line {line}: {problem}" if line else problem
        if problem:
            # Outside of the except block, so that the error does not keep the parser's frames alive.
            raise ChatTemplateError(self._message(problem))

    @classmethod
    def of(cls, model: Model, source: str | None = None, *, name: str | None = None) -> ChatTemplate:
        """Return a model's own template (``llama_model_chat_template``), or ``source`` with the tokens of the model.

        Args:
            model: the model whose template, BOS and EOS are taken.
            source: a template to take instead of the model's.
            name: which of the model's templates, such as "tool_use"; None is the default one.

        Raises ChatTemplateError where the model has none, and as ChatTemplate() does.
        """
        if source is None:
            source = model.chat_template(name)
        if source is None:
            what = "no chat template" if name is None else f"no chat template {name!r}"
            raise ChatTemplateError(f"{model.handle.name} has {what}; give one: ChatTemplate.of(model, source)")
        vocab = model.vocab
        bos, eos = ("" if token is None else vocab.text(token) for token in (vocab.bos, vocab.eos))
        return cls(source, bos_token=bos, eos_token=eos, name=name or "")

    def __reduce__(self) -> tuple[Any, ...]:
        limits = (self.max_seconds, self.max_steps, self.max_output)
        return _compiled, (type(self), self.source, self.bos_token, self.eos_token, self.name, *limits)

    def __copy__(self) -> ChatTemplate:
        return self  # it does not change

    def __deepcopy__(self, _memo: object) -> ChatTemplate:
        return self

    def __repr__(self) -> str:
        return f"ChatTemplate(name={self.name!r}, {len(self.source)} characters)"

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the prompt as one text; the arguments and errors are those of parts()."""
        return "".join(
            part.text for part in self.parts(messages, add_generation_prompt=add_generation_prompt, **variables)
        )

    def parts(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[PromptPart]:
        """Return the prompt as parts, none empty, of alternating kind; joined they are what render() returns.

        ``messages`` are dicts with "role", "content" and any other keys that the template knows. ``variables`` are more
        values for the template, such as ``tools``, ``documents`` or ``enable_thinking``. All must be like JSON: dict,
        list, tuple, str, int, float, bool or None, with str keys, nested up to 64 deep.

        The text of all of these is ``special=False``, but for roles that are one of assistant, developer, function,
        ipython, model, system, tool and user.

        Raises ``TypeError`` or ``ValueError``, naming the argument, for values that are not like JSON;
        ``ChatTemplateError`` if the template refuses the conversation, is broken, or goes over its limits.
        """
        from .caller_data import copy_of_data

        _check_messages(messages)
        for name in variables:
            if name in ("bos_token", "eos_token") or name in self._template.globals:
                raise TypeError(f"variables: {name} is no variable that can be passed")
        budget = RenderBudget(
            max_seconds=self.max_seconds, max_steps=self.max_steps, max_text=self.max_output, max_memory=2**63
        )
        token = current_budget.set(budget)
        try:
            arguments = {"messages": messages, "tools": None, "documents": None, **variables}
            data = {name: copy_of_data(value, name, budget) for name, value in arguments.items()}
            for message in data["messages"]:
                if message.get("role") in _ROLES:
                    message["role"] = str.__str__(message["role"])
            budget.max_weight += sum(budget.weights.get(id(value), 0) for value in data.values())
            budget.max_memory = RENDERING_MIN_BYTES + RENDERING_BYTES_PER_DATA_BYTE * budget.memory
            pieces, problem = self._run(
                {
                    **data,
                    "add_generation_prompt": bool(add_generation_prompt),
                    "bos_token": self.bos_token,
                    "eos_token": self.eos_token,
                }
            )
            if not problem:
                return _parts(pieces)
        finally:
            current_budget.reset(token)
        raise ChatTemplateError(self._message(problem))

    def parts_to_continue(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[PromptPart]:
        """Return the prompt with which the last message, the assistant's, goes on: it ends with that message's content.

        Takes what parts() takes. Raises ChatTemplateError where the template does not write the content as it is.
        """
        _check_messages(messages)
        content = messages[-1].get("content") if messages else None
        if not isinstance(content, str) or messages[-1].get("role") != "assistant":
            raise ValueError(
                "messages: the last one must be the assistant's, with a text as its content, to be continued"
            )
        marked = [*messages[:-1], {**messages[-1], "content": content + _CONTINUE_HERE}]
        kept: list[PromptPart] = []
        for part in self.parts(marked, add_generation_prompt=False, **variables):
            before, found, _ = part.text.partition(_CONTINUE_HERE)
            if found:
                return [*kept, PromptPart(before, part.special)] if before else kept
            kept.append(part)
        raise ChatTemplateError(
            self._message("it does not write the last message as it is, so that it cannot be continued")
        )

    def _run(self, variables: dict[str, Any]) -> tuple[list[str], str]:
        """Return the pieces that the template writes, and the problem if there was one."""
        pieces, size = [], 0
        try:
            for piece in self._template.root_render_func(self._template.new_context(variables)):
                size += len(piece)
                if size > self.max_output:
                    raise ChatTemplateError(f"it writes more than {self.max_output:,} characters")
                pieces.append(piece)
        except Exception as error:
            # A text, not the error: that would keep all of the template's values alive.
            problem = "calls are nested too deeply" if isinstance(error, RecursionError) else _first_line(error)
            line = self._line(error.__traceback__)
            return [], f"line {line}: {problem}" if line else problem
        return pieces, ""

    def _line(self, traceback: TracebackType | None) -> int | None:
        """Return the line of the template at which an error was raised."""
        line = None
        while traceback is not None:
            if traceback.tb_frame.f_globals.get("__jinja_template__") is self._template:
                line = self._template.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        return line

    def _message(self, problem: str) -> str:
        return f"chat template {self.name!r}: {problem}" if self.name else f"chat template: {problem}"


def _compiled(kind: type[ChatTemplate], source: str, bos: str, eos: str, name: str, *limits: Any) -> ChatTemplate:
    """Return a template that was pickled."""
    seconds, steps, output = limits
    return kind(
        source, bos_token=bos, eos_token=eos, name=name, max_seconds=seconds, max_steps=steps, max_output=output
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:1000] or type(error).__name__


def _check_messages(messages: object) -> None:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: must be a list of dicts, not {type(messages).__name__}")
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{at}]: must be a dict, not {type(message).__name__}")


def _parts(pieces: list[str]) -> list[PromptPart]:
    """Cut the pieces where the origin changes, and join neighbours of one kind."""
    runs: list[tuple[bool, list[str]]] = []

    def add(text: str, special: bool) -> None:
        if text and runs and runs[-1][0] is special:
            runs[-1][1].append(text)
        elif text:
            runs.append((special, [text]))

    for piece in pieces:
        at = 0
        for start, end in getattr(piece, "spans", ()):
            add(str.__getitem__(piece, slice(at, start)), True)
            add(str.__getitem__(piece, slice(start, end)), False)
            at = end
        add(str.__getitem__(piece, slice(at, None)), True)
    return [PromptPart("".join(texts), special) for special, texts in runs]
