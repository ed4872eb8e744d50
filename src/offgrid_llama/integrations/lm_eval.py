"""The LM Evaluation Harness on an Engine: ``python -m offgrid_llama.integrations.lm_eval run --model offgrid-llama ...``.

Importing this module registers the model ``offgrid-llama`` with the package ``lm_eval``.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from offgrid_llama.chat.template.template import ChatTemplate
from offgrid_llama.engine.engine import Engine
from offgrid_llama.engine.in_order import in_order

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["OffgridLlamaLM"]

_logger = logging.getLogger("offgrid_llama.lm_eval")

_GENERATION = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed"}
"""Options of generation that tasks give, and their names here."""
_KNOWN = {"until", "do_sample", "max_gen_toks", "max_tokens", "max_new_tokens", *_GENERATION}
DEFAULT_MAX_GEN_TOKS = 256
DEFAULT_BATCH_SIZE = 8


@register_model("offgrid-llama")
class OffgridLlamaLM(TemplateLM):  # type: ignore[misc]  # the package has no types
    """A GGUF model on an Engine of its own, as the LM Evaluation Harness uses one.

    Args:
        model: the name or path of a model.
        batch_size: how many requests share a step; the harness's default, 1, and "auto" are 8.
        max_length: the most tokens of a prompt and its continuation; longer prompts lose their beginning. None is the
            model's training length, up to 4,096.
        max_gen_toks: the most tokens of an answer, where a task does not say.
        max_batch_size, device: as the harness hands them to each model; not used.
        options: further arguments of Engine, such as ``n_threads`` or ``n_gpu_layers``.
    """

    def __init__(
        self,
        model: str,
        *,
        batch_size: int | str = DEFAULT_BATCH_SIZE,
        max_length: int | None = None,
        max_gen_toks: int = DEFAULT_MAX_GEN_TOKS,
        max_batch_size: object = None,
        device: object = None,
        **options: Any,
    ) -> None:
        super().__init__()
        n_seq_max = (
            DEFAULT_BATCH_SIZE if str(batch_size).startswith("auto") or int(batch_size) == 1 else int(batch_size)
        )
        n_ctx = None if max_length is None else n_seq_max * (max_length + 1)
        self.engine = Engine(model, n_seq_max=n_seq_max, n_ctx=n_ctx, **{"n_batch": max(512, n_seq_max + 1), **options})
        weakref.finalize(self, self.engine.close)  # the harness closes nothing
        self._vocab = self.engine.model.vocab
        self.max_length = self.engine.n_ctx_seq - 1
        self.max_gen_toks = int(max_gen_toks)
        self._ignored: set[str] = set()  # options of tasks that were told of
        bos = self._vocab.bos
        self._bos_text = "" if bos is None else self._vocab.text(bos)

    # What the harness asks of a tokenizer ----------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        eos = self._vocab.eos
        return min(self._vocab.eog_tokens()) if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: BOS, or the token that ends texts."""
        return self.eot_token_id if self._vocab.bos is None else self._vocab.bos

    @property
    def tokenizer_name(self) -> str:
        """What names the tokenizer in the harness's cache of requests."""
        return str(self.engine.model.handle.name).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text; control tokens are read, as rendered chat templates have them."""
        begins = bool(self._bos_text) and string.startswith(self._bos_text)
        special = not begins if add_special_tokens is None else add_special_tokens
        return self._vocab.tokenize(string, add_special=special, parse_special=True)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the model's chat template, or the one of this name."""
        return str(self._template(chat_template).source) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the model's template writes it."""
        template = self._template(True)
        if add_generation_prompt:
            return template.render(chat_history)
        return "".join(part.text for part in template.parts_to_continue(chat_history))

    def _template(self, name: bool | str) -> ChatTemplate:
        return ChatTemplate.of(self.engine.model, name=name if isinstance(name, str) else None)

    # Scores ----------------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Return the sum of logprobs of each continuation, and whether it is greedy."""
        order = sorted(range(len(requests)), key=lambda i: requests[i][1])  # what begins alike follows each other
        pairs = (self._fitting(*requests[i][1:]) for i in order)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        scores = self.engine.score_pairs(pairs)
        for i, score in zip(order, _watched(scores, len(order), disable_tqdm), strict=True):
            found[i] = (score.logprob, score.is_greedy)
            if requests[i][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
        return found

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Return both without what comes before the last ``max_length + 1`` tokens."""
        whole = [*context, *continuation][-(self.max_length + 1) :]
        n = max(len(whole) - len(continuation), 1)
        return whole[:n], whole[n:]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the sum of logprobs of each text, all of its tokens included."""
        windows: list[tuple[tuple[str, str] | None, list[int], list[int]]] = []
        ends = []
        for (text,) in (request.args for request in requests):
            tokens = self.tok_encode(text, add_special_tokens=False)
            parts = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            windows += [(None, *make_disjoint_window(part)) for part in parts]
            ends.append(len(windows))
        scores = [logprob for logprob, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        found = [sum(scores[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return found

    # Answers ---------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the answer to each prompt, up to one of its stop strings."""

        def submit(request: Instance) -> Any:
            prompt, given = request.args
            options = self._options(given)
            most = max(self.max_length - options["max_tokens"], 1)
            return self.engine.submit(self.tok_encode(prompt)[-most:], **options)

        texts = []
        with closing(in_order(submit, requests, 64)) as submitted:
            for request, completion in zip(requests, _watched(submitted, len(requests), disable_tqdm), strict=True):
                texts.append(completion.result().text)
                self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of ``Engine.submit`` for those that a task gives."""
        if more := given.keys() - _KNOWN - self._ignored:
            _logger.warning("options of a task that are not known here, and not used: %s", ", ".join(sorted(more)))
            self._ignored |= more
        options = {name: given[key] for key, name in _GENERATION.items() if given.get(key) is not None}
        if not given.get("do_sample", options.get("temperature")):
            options["temperature"] = 0.0
        until = given.get("until") or []
        n = next((given[key] for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if given.get(key)), None)
        n = self.max_gen_toks if n is None else int(n)
        return {**options, "stop": until, "max_tokens": min(n, self.max_length - 1)}


def _watched(items: Iterable[Any], n: int, disable: bool) -> Iterator[Any]:
    from tqdm import tqdm

    return iter(tqdm(items, total=n, disable=disable))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
