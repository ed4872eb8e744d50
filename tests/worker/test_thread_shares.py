"""How an engine and the embeddings of its worker share the threads."""

from __future__ import annotations

from contextlib import closing

import offgrid_llama as og
from helpers.engines import ENDLESS, Driven, make, turns
from offgrid_llama.worker.thread_shares import ThreadShares


class Told(Driven):
    """Keeps the numbers of threads that it is told."""

    told: list[int]

    def set_n_threads(self, n_threads: int) -> None:
        self.__dict__.setdefault("told", []).append(n_threads)
        super().set_n_threads(n_threads)


def test_each_has_half_of_the_threads_where_both_compute(smollm2: og.Model) -> None:
    """Embeddings have all threads while the engine is idle, and never more than the server allows."""
    with closing(make(smollm2, kind=Told)) as engine:
        assert isinstance(engine, Told)
        shares = ThreadShares(engine, 4)
        with shares.pooled() as n_threads:
            assert n_threads == 4
        with engine.submit([1], sampling=ENDLESS, max_tokens=200):
            turns(engine, 1)
            assert engine.stats().n_running == 1
            engine.told.clear()
            with shares.pooled() as n_threads:
                assert n_threads == 2
            assert engine.told == [2, 4]
            shares.allow(8)
            shares.allow(1)
            with shares.pooled() as n_threads:
                assert n_threads == 1
            assert engine.told == [2, 4, 4, 1, 1, 1]


def test_a_closed_engine_needs_no_threads(smollm2: og.Model) -> None:
    """An engine that is closed meanwhile is told nothing."""
    engine = make(smollm2)
    shares = ThreadShares(engine, 2)
    with shares.pooled():
        engine.close()
    with shares.pooled() as n_threads:
        assert n_threads == 2
