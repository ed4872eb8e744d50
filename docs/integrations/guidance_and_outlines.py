"""guidance and outlines, which take a `llama_cpp.Llama`, on the drop-in.

    python docs/integrations/guidance_and_outlines.py

In an environment of its own, with guidance, outlines and numba: guidance brings an older llguidance than offgrid-llama[chat]
takes. So CI does not run it.
"""

from __future__ import annotations

from typing import Any, Literal

import offgrid_llama.compat.llama_cpp
from offgrid_llama import store

offgrid_llama.compat.llama_cpp.install()  # before they import llama_cpp

import guidance  # noqa: E402
import llama_cpp  # noqa: E402
import outlines  # noqa: E402

PATH = str(store.pull("smollm2-135m-instruct"))


def use_guidance() -> None:
    """Let guidance compute with the raw layer."""
    model: Any = guidance.models.LlamaCpp(PATH, n_ctx=1024, echo=False)
    model += "Is snow white? " + guidance.select(["yes", "no"], name="answer")
    model += " How sure are you, in percent? " + guidance.gen("percent", regex="[0-9]{2}")
    assert model["answer"] in ("yes", "no")
    assert model["percent"].isdigit()
    print("guidance:", model["answer"], model["percent"])


def use_outlines() -> None:
    """Let outlines hold an answer by its logits processors."""
    llama: Any = llama_cpp.Llama(PATH, n_ctx=1024, verbose=False)
    model: Any = outlines.from_llamacpp(llama)
    answer = model("Is Paris big? Answer yes or no.", Literal["yes", "no"], max_tokens=8)
    streamed = "".join(model.stream("Name one of Paris and Rome.", Literal["Paris", "Rome"], max_tokens=8))
    assert answer in ("yes", "no")
    assert streamed in ("Paris", "Rome")
    print("outlines:", answer, streamed)
    llama.close()


if __name__ == "__main__":
    use_guidance()
    use_outlines()
