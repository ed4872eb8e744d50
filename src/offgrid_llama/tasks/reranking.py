"""Reranker: how well documents answer a query, many of them in one decode.

The prompt is that of llama.cpp's server: the model's chat template named "rerank", with its own control tokens; or, without
one, ``[BOS] query [EOS] [SEP] document [EOS]``, each token if the vocabulary asks for it. A control token written in a query
or a document stays text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from offgrid_llama.errors import ChatTemplateError, ContextLengthError, TokenizeError
from offgrid_llama.model.model import Model, check_model
from offgrid_llama.native.check import number
from offgrid_llama.native.enums import PoolingType
from offgrid_llama.native.kinds import text_of_argument

from .pooled import Pooled, joined

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.vocab import Vocab

__all__ = ["Ranked", "Reranker", "ranked"]

QUERY, DOCUMENT = "{query}", "{document}"


class Ranked(NamedTuple):
    """A document, by its index in those that were given, and its score."""

    document: int
    score: float


class Reranker(Pooled):
    """Scores of documents for a query, with a cross-encoder: a model that reads both together. Many share one decode.

    A score is the output of the model's classifier, of its first class if it has several: mostly a logit of any size, where
    larger is better; for Qwen3 the probability of "yes".

    Args:
        model: the Model; several Rerankers can share it.
        n_batch: the most tokens of one decode. None is 512, or the model's training length if that is less.
        n_threads: see Context.
        loras: adapters of the model to use, as ``Context.set_loras`` takes them.

    Raises:
        ContextError: the model is no reranker, or llama.cpp refused.
        ChatTemplateError: its template named "rerank" has no place for the query, or not exactly one for the document.
        TokenizeError: its vocabulary asks for a special token that it lacks.

    Attributes:
        n_batch: most tokens of one decode. n_ctx: of the query with one document; ``n_batch``, or the model's positions
            if these are fewer.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_batch: int | None = None,
        n_threads: int | None = None,
        loras: Mapping[LoRA, float] | Iterable[LoRA] = (),
    ) -> None:
        check_model(model)
        self._before, self._around, self._after = _pair(model)
        super().__init__(model, PoolingType.RANK, n_batch, n_threads, loras)

    def scores(
        self, query: str | bytes, documents: Sequence[str | bytes], *, truncate: bool = False
    ) -> npt.NDArray[np.float32]:
        """Return the score of each document, float32[len(documents)], in their order (``llama_get_embeddings_seq``).

        Args:
            query, documents: str, or bytes of UTF-8.
            truncate: shorten a document that does not fit into ``n_ctx`` tokens beside the query, instead of raising.

        Raises:
            ContextLengthError: a document does not fit, without ``truncate``; or the query leaves no room for any.
        """
        return joined(self.batches(query, documents, truncate=truncate), 1)[:, 0]

    def batches(
        self, query: str | bytes, documents: Sequence[str | bytes], *, truncate: bool = False
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Do what ``scores`` does, one decode at a time: each yields float32[k, 1], the scores of the next k documents.

        All documents are checked before the first decode. Between two decodes others may use this Reranker.
        """
        return self._vectors(self._rows(query, documents, truncate), 1)

    def rank(
        self, query: str | bytes, documents: Sequence[str | bytes], *, top_n: int | None = None, truncate: bool = False
    ) -> list[Ranked]:
        """Return the documents' indices and scores, best first; of equals the first comes first.

        Args:
            query, documents, truncate: see ``scores``.
            top_n: how many to return; None is all.
        """
        if top_n is not None:
            top_n = number("top_n", top_n, 1)
        return ranked(self.scores(query, documents, truncate=truncate), top_n)

    def __repr__(self) -> str:
        return f"<Reranker of {self.model.handle.name}: up to {self.n_ctx} tokens>"

    def _rows(self, query: str | bytes, documents: Sequence[str | bytes], truncate: bool) -> list[list[int]]:
        if isinstance(documents, (str, bytes)) or not isinstance(documents, Iterable):
            raise TypeError(f"documents must be a sequence of str or bytes, not {type(documents).__name__}")
        query = _text("query", query)

        def tokens(*parts: int | str) -> list[int]:
            found: list[int] = []
            for part in parts:
                found += [part] if isinstance(part, int) else self.model.vocab.tokenize(part, add_special=False)
            return found

        def asked(part: int | str) -> int | str:
            return part if isinstance(part, int) else part.replace(QUERY, query)

        head, tail = tokens(*map(asked, self._before)), tokens(*map(asked, self._after))
        before, after = (part.replace(QUERY, query) for part in self._around)
        rows = []
        for i, document in enumerate(documents):
            text = before + _text(f"documents[{i}]", document)
            row = [*head, *tokens(text + after), *tail]
            if len(row) > self.n_ctx:
                if not truncate:
                    raise ContextLengthError(
                        f"documents[{i}] has {len(row)} tokens with the query, over {self.n_ctx}: shorten it, "
                        "or use truncate=True",
                        n_tokens=len(row), n_ctx=self.n_ctx, argument=f"documents[{i}]",
                    )  # fmt: skip
                end = [*tokens(after), *tail]
                self._refuse_long_query(len(head) + len(tokens(before)) + len(end))
                row = [*head, *tokens(text)][: self.n_ctx - len(end)] + end
            if not row:
                raise ValueError(f"query and documents[{i}] give no tokens")
            rows.append(row)
        return rows

    def _refuse_long_query(self, n_tokens: int) -> None:
        if n_tokens >= self.n_ctx:
            raise ContextLengthError(
                f"query has {n_tokens} tokens without a document, of {self.n_ctx}: shorten it",
                n_tokens=n_tokens, n_ctx=self.n_ctx, argument="query",
            )  # fmt: skip


def ranked(scores: npt.NDArray[np.float32], top_n: int | None) -> list[Ranked]:
    """Return documents by their scores, best first, up to ``top_n``; of equals the first comes first."""
    return [Ranked(int(i), float(scores[i])) for i in (-scores).argsort(kind="stable")[:top_n]]


def _text(name: str, value: str | bytes) -> str:
    if not isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be str or bytes, not {type(value).__name__}")
    with text_of_argument(name):
        return value.decode("utf-8") if isinstance(value, bytes) else value.encode("utf-8").decode("utf-8")


def _pair(model: Model) -> tuple[list[int | str], tuple[str, str], list[int | str]]:
    """Return the parts of a prompt: those before, the texts around the document, and those after.

    A part is a token, or a text that is tokenized together with the query or document put into it.
    """
    template = model.chat_template("rerank")
    parts = _plain(model) if template is None else _cut(model.vocab, template)
    texts = [part if isinstance(part, str) else "" for part in parts]
    queries, documents = (sum(text.count(name) for text in texts) for name in (QUERY, DOCUMENT))
    if not queries or documents != 1:
        raise ChatTemplateError(
            f'{model.handle.name}: its template "rerank" has {queries} {QUERY} and {documents} {DOCUMENT}; '
            "one or more, and one, are needed"
        )
    place = next(i for i, text in enumerate(texts) if DOCUMENT in text)
    before, _, after = texts[place].partition(DOCUMENT)
    return parts[:place], (before, after), parts[place + 1 :]


def _plain(model: Model) -> list[int | str]:
    vocab = model.vocab

    def special(name: str, wanted: bool, token: int | None) -> list[int]:
        if wanted and token is None:
            raise TokenizeError(f"{model.handle.name} wants {name} beside the query and has no such token")
        return [token] if wanted and token is not None else []

    bos = special("bos", vocab.add_bos, vocab.bos)
    eos = special("eos", vocab.add_eos, vocab.sep if vocab.eos is None else vocab.eos)
    sep = special("sep", vocab.add_sep, vocab.sep)
    return [*bos, QUERY, *eos, *sep, DOCUMENT, *eos]


def _cut(vocab: Vocab, template: str) -> list[int | str]:
    """Cut a template at its own control tokens, so that text put between them cannot become one."""
    parts: list[int | str] = []
    for token in vocab.tokenize(template, add_special=False, parse_special=True):
        if vocab.is_control(token):
            text, _, template = template.partition(vocab.text(token))
            parts += [text, token] if text else [token]
    return [*parts, template] if template else parts
