"""From llama-cpp-python's arguments about sampling to SamplingParams, and to a choice of tokens one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offgrid_llama.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from offgrid_llama.context.context import Context
    from offgrid_llama.model.vocab import Vocab

    from .llama_grammar import LlamaGrammar

__all__ = ["ARGUMENTS", "Chooser", "Processor", "sampling_params", "valid_seed"]

Processor = Callable[[npt.NDArray[np.intc], npt.NDArray[np.single]], npt.NDArray[np.single]]
"""A function of (token ids so far, logits), which returns the logits to go on with."""

ARGUMENTS = (
    "top_k", "top_p", "min_p", "typical_p", "temp", "repeat_penalty", "frequency_penalty", "presence_penalty",
    "mirostat_mode", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
"""The names of the arguments that ``sampling_params`` takes. ``tfs_z`` and ``penalize_nl`` do nothing, there neither."""


def valid_seed(seed: int) -> int:
    """Return a seed that llama.cpp does not take for a wish for a random one."""
    return seed % (2**32 - 1)


def sampling_params(
    arguments: Mapping[str, Any],
    *,
    seed: int,
    last_n: int,
    grammar: LlamaGrammar | None = None,
    logit_bias: Mapping[int, float] | None = None,
) -> SamplingParams:
    """Return what the arguments stand for, with their values where llama.cpp takes a value for "off" that we refuse.

    Args:
        arguments: those of ``ARGUMENTS``, by name. seed, last_n: see Llama. grammar, logit_bias: see ``create_completion``.

    Raises ValueError, TypeError or GrammarError for an argument that cannot be used.
    """
    temp, mirostat = arguments["temp"], arguments["mirostat_mode"]
    shares = {name: min(max(arguments[name], 0.0), 1.0) for name in ("top_p", "min_p", "typical_p")}
    if temp < 0:  # from all tokens, as the model has it
        temp, mirostat, shares = 1.0, 0, {"top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    return SamplingParams(
        temperature=temp,
        top_k=0 if arguments["temp"] < 0 else max(arguments["top_k"], 0),
        **shares,
        repeat_last_n=last_n,
        repeat_penalty=arguments["repeat_penalty"],
        frequency_penalty=arguments["frequency_penalty"],
        presence_penalty=arguments["presence_penalty"],
        mirostat=mirostat if mirostat in (1, 2) else 0,
        mirostat_tau=arguments["mirostat_tau"],
        mirostat_eta=arguments["mirostat_eta"],
        logit_bias={int(token): float(number) for token, number in (logit_bias or {}).items()},
        seed=valid_seed(seed),
        samplers=("penalties", "top_k", "typical", "top_p", "min_p", "temp_ext"),
        grammar=None if grammar is None else grammar.grammar,
    )


class Chooser:
    """Chooses the tokens of one text, one by one: functions change the logits first, then the samplers choose.

    Args:
        vocab: of the model. params: the samplers. processors: the functions.
    """

    def __init__(self, vocab: Vocab, params: SamplingParams, processors: Sequence[Processor] = ()) -> None:
        self._chain = params.chain(vocab)
        self._processors = processors

    def choose(self, context: Context, row: int, tokens: npt.NDArray[np.intc]) -> int:
        """Return the token for a row of the context's last decode, behind ``tokens``."""
        if not self._processors:
            return self._chain.sample(context, row)
        logits = context.logits(row).copy()
        for processor in self._processors:
            logits[:] = processor(tokens, logits)
        return self._chain.choose(logits)

    def close(self) -> None:
        """Free the samplers."""
        self._chain.close()
