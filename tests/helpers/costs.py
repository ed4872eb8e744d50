"""Costs of steps: where a row more is free, and where it is dear."""

from __future__ import annotations

from offgrid_llama.engine.planning.costs import Costs

FREE, DEAR = Costs(), Costs()
for n_generating in range(1, 9):
    for n_guessed in range(20):
        FREE.observe(n_generating, n_guessed, 1.0)
        DEAR.observe(n_generating, n_guessed, 1.0 + n_guessed)
