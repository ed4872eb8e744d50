"""``infill``: generate the text between a prefix and a suffix, with a model that was trained for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from offgrid_llama.errors import TokenizeError
from offgrid_llama.native.kinds import listed, text_of_argument
from offgrid_llama.sampling.sampling_params import SamplingParams

from .generate import Generation, start
from .prompt import TokenPrompt
from .request_options import GenerationArguments, RequestArguments, RequestOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from offgrid_llama.model.model import Model
    from offgrid_llama.model.vocab import Vocab

__all__ = ["INFILL_SAMPLERS", "ContextFiles", "fim_prompt", "infill", "infill_options"]

INFILL_SAMPLERS = ("top_k", "top_p", "infill")
"""Samplers for code: the last one ends the text where that is likely."""


ContextFiles: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""The texts of other files, by name, in the order in which the model reads them."""


def fim_prompt(
    vocab: Vocab,
    prefix: str,
    suffix: str,
    *,
    spm_infill: bool = False,
    files: ContextFiles = (),
    file_name: str = "",
    repo_name: str = "",
) -> list[int]:
    """Return the token ids that ask for the text between ``prefix`` and ``suffix``, in the order of llama.cpp's server.

    That is BOS where the model wants it, then FIM_PRE, prefix, FIM_SUF, suffix, FIM_MID. With ``spm_infill`` it is FIM_SUF,
    suffix, FIM_PRE, prefix, FIM_MID, as some models were trained. Nothing in the texts is read as a control token.

    Other ``files`` of the project come first, each behind FIM_SEP and its name: FIM_REP, the repository's name, the files,
    then FIM_SEP and ``file_name``, the name of the file that is completed. Put those first that change least: what is
    computed of a common beginning is used again by an Engine.

    Raises TokenizeError for a model without these tokens, and TypeError or ValueError for other arguments than these.
    """
    pre, suf, mid = vocab.fim_pre, vocab.fim_suf, vocab.fim_mid
    if pre is None or suf is None or mid is None:
        raise TokenizeError(
            f"{vocab.handle.name} cannot fill in the middle: it lacks a token of FIM_PRE, FIM_SUF, FIM_MID. "
            "Take a model that was trained for it, a code model for instance"
        )
    first = [pre, *_text("prefix", vocab, prefix)]
    second = [suf, *_text("suffix", vocab, suffix)]
    if spm_infill:
        first, second = second, first
    bos = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    return [*bos, *_project(vocab, files, file_name, repo_name), *first, *second, mid]


def _project(vocab: Vocab, files: ContextFiles, file_name: str, repo_name: str) -> list[int]:
    """Return the token ids of the other files, and of the names of the repository and of the file that is completed."""
    pairs = files.items() if isinstance(files, Mapping) else files
    named: tuple[Any, ...] = listed("files", pairs, "texts by name")
    if not named and not file_name and not repo_name:
        return []
    sep, rep = vocab.fim_sep, vocab.fim_rep
    if sep is None:
        raise TokenizeError(f"{vocab.handle.name} takes no files, file_name and repo_name: it lacks the token FIM_SEP")
    tokens: list[int] = []
    if rep is not None:
        tokens += [rep, *_text("repo_name", vocab, repo_name or "project", "\n")]
    for at, item in enumerate(named):
        if not isinstance(item, tuple) or len(item) != 2:
            raise TypeError(f"files must be texts by name, or pairs of name and text; files[{at}] is neither")
        name, text = item
        tokens += [sep, *_text(f"the name of files[{at}]", vocab, name, "\n"), *_text(f"files[{name!r}]", vocab, text)]
    return [*tokens, sep, *_text("file_name", vocab, file_name or "file", "\n")]


def _text(name: str, vocab: Vocab, text: str, end: str = "") -> list[int]:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be str, not {type(text).__name__}")
    with text_of_argument(name):
        return vocab.tokenize(text + end, add_special=False)


def infill_options(caller: str, options: GenerationArguments, allowed: type = RequestArguments) -> RequestOptions:
    """Return the options of a call that fills in, with the samplers of ``INFILL_SAMPLERS`` where none are given."""
    given = options.get("sampling")
    sampling = SamplingParams(samplers=INFILL_SAMPLERS) if given is None else given
    return RequestOptions.read(caller, {**options, "sampling": sampling}, allowed)


def infill(
    model: Model,
    prefix: str,
    suffix: str,
    *,
    spm_infill: bool = False,
    files: ContextFiles = (),
    file_name: str = "",
    repo_name: str = "",
    n_ctx: int | None = None,
    n_threads: int | None = None,
    **options: Unpack[GenerationArguments],
) -> Generation:
    """Return a Generation of the text between ``prefix`` and ``suffix``.

    It computes all of the texts. An editor, which asks again at each keystroke, takes ``Engine.infill``: that computes only
    what has changed.

    Args:
        model: a Model with fill-in-the-middle tokens.
        prefix, suffix: the texts before and after.
        spm_infill: suffix first; see ``fim_prompt``.
        files, file_name, repo_name: other files of the project, and names; see ``fim_prompt``.
        n_ctx, n_threads: see ``generate``.
        options: as ``generate`` takes them. Without ``sampling``, tokens are chosen by ``top_k``, ``top_p`` and ``infill``,
            which ends the text where that is likely, with SamplingParams' own values.

    Raises:
        TokenizeError: the model has no fill-in-the-middle tokens, or none for files.
        ContextLengthError: the texts do not fit; nothing is cut off.
        ValueError, TypeError: an option is not as RequestOptions describes it.
    """
    checked = infill_options("infill", options, GenerationArguments)
    tokens = fim_prompt(
        model.vocab, prefix, suffix, spm_infill=spm_infill, files=files, file_name=file_name, repo_name=repo_name
    )
    return start(model, TokenPrompt(tokens), checked, n_ctx, n_threads)
