"""Completion for an editor: what comes between the text before the cursor and the text behind it, at each keystroke.

    python docs/recipes/editor.py MODEL

MODEL is one that can fill in the middle, such as a code model. A keystroke cancels the completion of the one before. What
is computed of the file is kept, so that a keystroke computes only what is new.
"""

from __future__ import annotations

import argparse
import asyncio

import offgrid_llama as og

PAUSE_SECONDS = 0.05
"""How long the keyboard rests before a completion begins."""


class Completer:
    """Completes one file.

    Args:
        engine: an Engine. files: the texts of other files that the model may look at, by name.
    """

    def __init__(self, engine: og.Engine, files: dict[str, str]) -> None:
        self._engine = engine
        self._files = files
        self._task: asyncio.Task[str] | None = None

    async def typed(self, before: str, behind: str) -> str | None:
        """Return what fits between the texts around the cursor; None where another keystroke came before the answer."""
        if self._task is not None:
            self._task.cancel()
        task = self._task = asyncio.create_task(self._complete(before, behind))
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and task is not self._task:
                return None
            raise

    async def _complete(self, before: str, behind: str) -> str:
        await asyncio.sleep(PAUSE_SECONDS)
        completion = self._engine.infill(before, behind, files=self._files, max_tokens=32, temperature=0, stop="\n\n")
        with completion:
            await completion  # a cancelled task leaves the block, which cancels the completion
            return completion.text


async def session(engine: og.Engine) -> None:
    """Type a line, faster than the model completes, and then rest."""
    completer = Completer(engine, {"shapes.py": "def area(width, height):\n    return width * height\n"})
    before, behind = "import shapes\n\nprint(", ")\n"
    line = "shapes.a"
    answers = await asyncio.gather(*(completer.typed(before + line[:n], behind) for n in range(1, len(line) + 1)))
    print("answers:", [answer is not None for answer in answers])
    print("the last one:", repr(answers[-1]))
    again = await completer.typed(before + line + "r", behind)
    print("and then:", repr(again))


def main() -> None:
    """Run a session with a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    args = parser.parse_args()
    with og.Engine(args.model, n_ctx=4096, n_seq_max=2) as engine:
        asyncio.run(session(engine))


if __name__ == "__main__":
    main()
