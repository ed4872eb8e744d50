"""Caches of states: the longest common prefix, the least recently used, and files that may be damaged."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.states import state, write_many
from offgrid_llama.compat.llama_cpp.llama_cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache

Make = Callable[..., BaseLlamaCache]


@pytest.fixture(params=["RAM", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Make a cache of a kind."""
    if request.param == "RAM":
        return LlamaRAMCache
    return lambda **options: LlamaDiskCache(str(tmp_path / "cache"), **options)


def test_a_state_comes_back_whole(make: Make) -> None:
    """All its parts, with their types, as often as it is asked for."""
    cache = make()
    cache[[1, 2, 3]] = state([1, 2, 3])
    for _ in range(2):
        found = cache[[1, 2, 3]]
        assert found.input_ids.tolist() == [1, 2, 3]
        assert found.input_ids.dtype == np.intc
        assert found.scores.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found.scores.dtype == np.single
        assert (found.n_tokens, found.llama_state, found.llama_state_size, found.seed) == (3, bytes([3]) * 100, 100, 7)


def test_the_longest_common_prefix_is_found(make: Make) -> None:
    """Neither key needs to be a prefix of the other, but one token must be the same."""
    cache = make()
    for key in ([1], [1, 2, 3], [1, 2, 4, 5], [9, 2, 3]):
        cache[key] = state(key)
    cases: list[tuple[Any, list[int]]] = [
        ([1, 2, 3, 4], [1, 2, 3]), ([1, 2, 4], [1, 2, 4, 5]), ([9, 9], [9, 2, 3]), ([1, 7], [1]), ((1, 2, 3), [1, 2, 3]),
        (np.array([9, 2], np.int32), [9, 2, 3]),
    ]  # fmt: skip
    for wanted, found in cases:
        assert wanted in cache
        assert cache[wanted].input_ids.tolist() == found
    for unknown in ([2, 3], [], [8]):
        assert unknown not in cache
        with pytest.raises(KeyError):
            cache[unknown]


def test_a_random_search(make: Make) -> None:
    """The prefix is as long as the longest one of any key."""

    def common(one: Sequence[int], other: Sequence[int]) -> int:
        return next(
            (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )

    rng, cache = random.Random(5), make()
    keys = {tuple(rng.randrange(3) for _ in range(rng.randrange(1, 7))) for _ in range(25)}
    for key in keys:
        cache[key] = state(key)
    for _ in range(60):
        wanted = [rng.randrange(3) for _ in range(rng.randrange(0, 8))]
        longest = max(common(wanted, key) for key in keys)
        assert (wanted in cache) == (longest > 0)
        if longest:
            assert common(wanted, cache[wanted].input_ids.tolist()) == longest


def test_the_least_recently_used_leave(make: Make) -> None:
    """A state that is found is used; one that is larger than the cache does not stay."""
    cache = make()
    cache[[1]] = state([1], 4000)
    size = cache.cache_size
    assert size >= 4000
    cache.capacity_bytes = 2 * size + 100
    cache[[2]] = state([2], 4000)
    assert [1] in cache
    _ = cache[[1]]
    cache[[3]] = state([3], 4000)
    assert ([1] in cache, [2] in cache, [3] in cache) == (True, False, True)
    cache[[4]] = state([4], 20000)
    assert cache.cache_size == 0


def test_a_key_has_one_state(make: Make) -> None:
    """The newer one takes the place of the older one."""
    cache = make()
    cache[[1, 2]] = state([1, 2], 50)
    cache[[1, 2]] = state([1, 2, 3], 60)
    assert cache[[1, 2]].n_tokens == 3
    assert cache.cache_size < 2000


def test_names() -> None:
    """LlamaCache is the cache in memory."""
    assert LlamaCache is LlamaRAMCache
    assert issubclass(LlamaDiskCache, BaseLlamaCache)
    cache = LlamaCache()
    assert cache.capacity_bytes == 2**31
    cache[[1]] = kept = state([1])
    assert list(cache.cache_state.items()) == [((1,), kept)]


def test_the_next_process_finds_the_states(tmp_path: Path) -> None:
    """In the order of their use."""
    first = LlamaDiskCache(str(tmp_path), capacity_bytes=2**20)
    for key in ([1], [2], [3]):
        first[key] = state(key, 1000)
    _ = first[[1]]
    second = LlamaDiskCache(str(tmp_path), capacity_bytes=2**20)
    assert second[[2, 5]].input_ids.tolist() == [2]
    second.capacity_bytes = second.cache_size + 20  # numbers in headers have more digits or fewer
    second[[4]] = state([4], 1000)
    assert [[key] in first for key in (1, 2, 3, 4)] == [True, True, False, True]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off in the header": lambda data: data[:20],
    "cut off in the state": lambda data: data[:-50],
    "another state": lambda data: data[:-1] + b"x",
    "other scores": lambda data: data.replace(np.single(5).tobytes(), np.single(6).tobytes()),
    "another format": lambda data: data.replace(b"llama_state.1", b"llama_state.2"),
    "no header": lambda data: data.partition(b"\n")[2],
    "no JSON object": lambda data: b"[]\n" + data.partition(b"\n")[2],
    "another number": lambda data: data.replace(b'"seed": 7', b'"seed": 8'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_missing(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are deleted with a warning, and the others are still found."""
    cache = LlamaDiskCache(str(tmp_path))
    cache[[1, 2]] = state([1, 2])
    (file,) = tmp_path.iterdir()
    cache[[1]] = state([1])
    before = file.read_bytes()
    file.write_bytes(DAMAGE[kind](before))
    assert file.read_bytes() != before
    for again in (cache, LlamaDiskCache(str(tmp_path))):
        assert again[[1, 2]].input_ids.tolist() == [1]
    assert not file.exists()
    assert "damaged" in caplog.text


def test_a_file_under_another_name_is_damaged(tmp_path: Path) -> None:
    """The name is that of the key, so that no file stands for another key."""
    cache = LlamaDiskCache(str(tmp_path))
    cache[[1]] = state([1])
    (file,) = tmp_path.iterdir()
    file.rename(file.with_name("0" * 64 + file.suffix))
    assert [1] not in cache
    assert list(tmp_path.iterdir()) == []


class Evil:
    """An object whose unpickling would be noticed."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with an array of objects is damaged, and its objects are not made."""
    monkeypatch.chdir(tmp_path)
    cache = LlamaDiskCache("cache")
    cache[[1]] = state([1])
    (file,) = Path("cache").iterdir()
    header = file.read_bytes().partition(b"\n")[0]
    with open(file, "wb") as written:
        written.write(header + b"\n")
        for array in ([1], [1]):
            np.save(written, np.array(array, np.int32))
        np.save(written, np.array([Evil()], dtype=object), allow_pickle=True)
        np.save(written, np.zeros(3, np.uint8))
    with pytest.raises(KeyError):
        cache[[1]]
    assert not Path("unpickled").exists()


def test_an_array_of_objects_is_not_written(tmp_path: Path) -> None:
    """It raises, and leaves no file."""
    cache = LlamaDiskCache(str(tmp_path))
    bad = state([1])
    bad.scores = np.array([None])
    with pytest.raises(TypeError, match="references"):
        cache[[1]] = bad
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_stay(tmp_path: Path) -> None:
    """The cache counts and deletes its own files only."""
    (tmp_path / "notes.txt").write_text("x" * 5000)
    cache = LlamaDiskCache(str(tmp_path), capacity_bytes=0)
    cache[[1]] = state([1])
    assert cache.cache_size == 0
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """Each finds whole states only, and the folder stays within its limit."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=write_many, args=(str(tmp_path), first)) for first in (0, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    cache = LlamaDiskCache(str(tmp_path), capacity_bytes=20_000)
    assert 0 < cache.cache_size <= 22_000
    assert all(file.suffix == ".llama_state" for file in tmp_path.iterdir())
