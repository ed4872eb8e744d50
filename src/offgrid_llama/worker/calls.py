"""Calls: requests with one result: embeddings, ranks, tokens, prompts and their lengths."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.chat_format import ToolUse
from offgrid_llama.chat.chat_formats import ChatFormats
from offgrid_llama.chat.reasoning import Reasoning
from offgrid_llama.engine.chat_options import ChatOptions
from offgrid_llama.errors import ContextError
from offgrid_llama.media.projector import Projector
from offgrid_llama.model.adapter import LoRA
from offgrid_llama.model.model import Model
from offgrid_llama.native.enums import PoolingType
from offgrid_llama.tasks.embedding import Embedder, normalized
from offgrid_llama.tasks.pooled import Pooled, joined
from offgrid_llama.tasks.reranking import Reranker, ranked

from .arguments import chat_arguments, check_template
from .failures import RequestError, client_data
from .fair_pool import FairPool
from .generation import Conversation
from .prompts import mixed, n_prompt_tokens
from .thread_shares import ThreadShares

__all__ = ["FIELDS", "Calls"]

FIELDS: dict[str, dict[str, str]] = {
    "embed": {"texts": "input", "text": "input"}, "rerank": {name: name for name in ("query", "documents", "top_n")},
    "tokenize": {"text": "content"}, "tokenize_prompt": {"text": "prompt"}, "tokenize_input": {"text": "input"},
    "detokenize": {"tokens": "tokens"}, "join_pieces": {"tokens": "tokens"},
    "template": {"messages": "messages", "tools": "tools", "variables": "chat_template_kwargs"},
}  # fmt: skip
"""Where a client gives each argument of the library, by the Call, for errors."""

MANY_PIECES = 4096
"""A text with this number of different tokens has the pieces of the whole vocabulary read in one call, which is quicker."""


class Calls:
    """Computes the result of a Call.

    Args:
        model: of the worker.
        template: of conversations; None is the model's own.
        loras: adapters in use, with their scales.
        shares: how many threads to compute with.
        threads: for work that would block the event loop.
        pooled: one thread, for contexts that compute embeddings and ranks.
        projector: sees and hears for the model; None does not.

    Attributes:
        functions: by the name of the Call; they take the partition of the client, and the arguments of the Call.
    """

    def __init__(
        self,
        model: Model,
        template: ChatTemplate | None,
        loras: Mapping[LoRA, float],
        shares: ThreadShares,
        *,
        threads: FairPool,
        pooled: FairPool,
        projector: Projector | None = None,
    ) -> None:
        self._model = model
        self._projector = projector
        self._template = template
        self._formats = ChatFormats(model)
        self._loras = loras
        self._shares = shares
        self._embedders: dict[str | None, Embedder] = {}
        self._reranker: Reranker | None = None
        self._threads = threads
        self._pooled = pooled
        self.functions: dict[str, Callable[..., Awaitable[Any]]] = {
            "embed": self._embed, "rerank": self._rerank, "tokenize": self._in_thread(self._tokenize),
            "tokenize_prompt": self._in_thread(self._tokenize), "tokenize_input": self._in_thread(self._tokenize),
            "detokenize": self._in_thread(self._detokenize), "join_pieces": self._in_thread(self._join_pieces),
            "template": self._in_thread(self._render), "count": self._count,
        }  # fmt: skip

    def _in_thread(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        def call(partition: str, **arguments: Any) -> Awaitable[Any]:
            return self._threads.run(partition, partial(function, **arguments))

        return call

    async def _embed(
        self,
        partition: str,
        texts: list[str | list[int | str]],
        pooling: str | None = None,
        normalize: bool = True,
        truncate: bool = False,
        n_values: int | None = None,
        matryoshka: bool | list[int] = True,
    ) -> dict[str, Any]:
        """Return the vectors of all texts in one, and the number of those of each text: with "none" each token has one.

        With ``truncate`` a text that is too long is cut. Of each vector the first ``n_values`` are told, of length 1, if
        ``matryoshka`` says that it can be cut to them: any number, or these. Raises RequestError otherwise.
        """
        tokens = await self._threads.run(partition, self._tokens, texts)
        embedder = self._embedders.get(pooling) or await self._pooled.run(partition, self._embedder, pooling)
        if matryoshka is not True and n_values is not None:
            _check_values(n_values, embedder.n_embd, matryoshka or [])
        if truncate:
            tokens = [each if len(each) <= embedder.n_ctx else embedder.shortened(each) for each in tokens]
        if embedder.pooling_type is PoolingType.NONE:
            found = await self._compute(
                partition, embedder, partial(embedder.embed_tokens, tokens, normalize=normalize)
            )
        else:
            batches = await self._threads.run(partition, partial(embedder.batches, tokens, normalize=normalize))
            found = await self._computed(partition, embedder, batches)
        vectors = joined(found, embedder.n_embd)
        if n_values is not None and n_values < vectors.shape[1]:
            vectors = normalized(vectors[:, :n_values])
        lengths = [len(each) for each in tokens]
        each = lengths if embedder.pooling_type is PoolingType.NONE else [1] * len(tokens)
        return {"data": vectors.tobytes(), "n_embd": vectors.shape[1], "n_tokens": sum(lengths), "n_vectors": each}

    def _compute(self, partition: str, pooled: Pooled, function: Callable[[], Any]) -> Awaitable[Any]:
        """Return what a function returns that computes with ``pooled``, in its thread."""

        def compute() -> Any:
            with self._shares.pooled() as n_threads:
                pooled.set_n_threads(n_threads)
                return function()

        return self._pooled.run(partition, compute)

    async def _computed(self, partition: str, pooled: Pooled, batches: Iterator[Any]) -> list[Any]:
        """Return all batches. Between two of them other partitions have their turn, and a client may leave."""
        found: list[Any] = []
        while (batch := await self._compute(partition, pooled, partial(next, batches, None))) is not None:
            found.append(batch)
        return found

    def _tokens(self, texts: list[str | list[int | str]]) -> list[list[int]]:
        found: list[list[int]] = []
        for i, text in enumerate(texts):
            with client_data({"text": f"input[{i}]"}):
                found.append(
                    self._model.vocab.tokenize(text) if isinstance(text, str) else mixed(text, self._model.vocab)
                )
        return found

    def _embedder(self, pooling: str | None) -> Embedder:
        if pooling not in self._embedders:
            self._embedders[pooling] = self._make_embedder(pooling)
        return self._embedders[pooling]

    def _make_embedder(self, pooling: Any) -> Embedder:
        """Return an Embedder with this pooling; None is the model's, or the mean where the model names none."""
        if pooling is not None:
            return Embedder(self._model, pooling_type=pooling, loras=self._loras)
        embedder = Embedder(self._model, loras=self._loras)
        if embedder.pooling_type is not PoolingType.NONE:
            return embedder
        embedder.close()
        return Embedder(self._model, pooling_type="mean", loras=self._loras)

    async def _rerank(self, partition: str, query: str, documents: list[str], top_n: int | None) -> list[list[float]]:
        reranker = self._reranker or await self._pooled.run(partition, self._the_reranker)
        batches = await self._threads.run(partition, reranker.batches, query, documents)
        scores = joined(await self._computed(partition, reranker, batches), 1)[:, 0]
        return [list(place) for place in ranked(scores, top_n)]

    def _the_reranker(self) -> Reranker:
        try:
            if self._reranker is None:
                self._reranker = Reranker(self._model, loras=self._loras)
        except ContextError as error:
            raise RequestError(f"this model does not rank documents: {error.message}", param="model") from error
        return self._reranker

    def _tokenize(self, text: str, add_special: bool, parse_special: bool, with_pieces: bool) -> dict[str, Any]:
        tokens = self._model.vocab.tokenize(text, add_special=add_special, parse_special=parse_special)
        return {"tokens": array("i", tokens).tobytes(), "pieces": self._pieces(set(tokens)) if with_pieces else None}

    def _pieces(self, tokens: set[int]) -> dict[int, bytes]:
        vocab = self._model.vocab
        if len(tokens) < MANY_PIECES:
            return {token: vocab.piece(token, special=True) for token in tokens}
        pieces = vocab.pieces()
        return {token: pieces[token] for token in tokens}

    def _detokenize(self, tokens: list[int]) -> str:
        return self._model.vocab.detokenize(tokens, unparse_special=True)

    def _join_pieces(self, tokens: list[int]) -> str:
        """Return the text of tokens in llama-cpp-python's manner: control tokens have none, and spaces stay.

        Only the space that some tokenizers put before a text is left out, behind the token that begins it.
        """
        vocab = self._model.vocab
        pieces: dict[int, bytes] = {}
        for i, token in enumerate(tokens):
            if token not in pieces:
                pieces[token] = vocab.piece(vocab.check_token(f"tokens[{i}]", token))
        text = b"".join([pieces[token] for token in tokens])
        return (text.removeprefix(b" ") if tokens and tokens[0] == vocab.bos else text).decode(errors="replace")

    def _render(self, conversation: dict[str, Any]) -> str:
        asked = msgspec.convert(conversation, Conversation)
        check_template(self._model, asked.template or self._template)
        options = chat_arguments(asked)
        use = ToolUse.of(options["tools"], options["tool_choice"], True)
        chat_format = self._formats.of(asked.template or self._template, tools=bool(asked.tools))
        parts = chat_format.parts(
            asked.messages, asked.variables, use.tools, continue_final_message=asked.continue_final_message,
            add_generation_prompt=asked.add_generation_prompt,
        )  # fmt: skip
        text = "".join(part.text for part in parts)
        is_whole = asked.add_generation_prompt and not asked.continue_final_message
        return _without_reasoning(text, chat_format.reasoning) if asked.reasoning_budget == 0 and is_whole else text

    async def _count(self, partition: str, conversation: dict[str, Any]) -> int:
        n_tokens: int = await self._threads.run(partition, self._n_prompt_tokens, conversation, partition)
        return n_tokens

    def _n_prompt_tokens(self, conversation: dict[str, Any], partition: str) -> int:
        asked = msgspec.convert(conversation, Conversation)
        check_template(self._model, asked.template or self._template)
        with client_data(asked.names):
            options, _ = ChatOptions.split("count", chat_arguments(asked))
            chat_format = self._formats.of(asked.template or self._template, tools=bool(asked.tools))
            prompt, _ = options.prompt(asked.messages, chat_format, partition)
            return n_prompt_tokens(prompt, self._projector)


def _without_reasoning(prompt: str, marks: Reasoning | None) -> str:
    """Return the text of a prompt after which the model writes no reasoning."""
    if marks is None or prompt.rstrip().endswith(marks.end):
        return prompt
    return prompt + marks.end if prompt.rstrip().endswith(marks.begin) else f"{prompt}{marks.begin}{marks.end}"


def _check_values(n: int, n_embd: int, matryoshka: list[int]) -> None:
    """Raise RequestError unless vectors of ``n_embd`` values can have ``n``: all of them, or one of ``matryoshka``."""
    if n == n_embd or (n < n_embd and n in matryoshka):
        return
    if n > n_embd or matryoshka:
        numbers = ", ".join(map(str, sorted({*(each for each in matryoshka if each < n_embd), n_embd})))
        raise RequestError(
            f"dimensions: the vectors of this model can have {numbers} values, not {n}", param="dimensions"
        )
    raise RequestError(
        f"dimensions: the vectors of this model have {n_embd} values. If it was trained for vectors that are cut, its "
        "setting matryoshka can say so: the server's settings can have it as true, or as a list of numbers",
        param="dimensions",
    )
