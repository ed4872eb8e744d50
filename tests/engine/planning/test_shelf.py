"""Shelf: what lies there is found by its beginning, and no more lies there than there is room for."""

from __future__ import annotations

from offgrid_llama.engine.planning.operations import Forget, Spill
from offgrid_llama.engine.planning.shelf import Shelf


def test_found_by_its_beginning() -> None:
    """The longest common beginning, and the longest text that is one as a whole."""
    shelf = Shelf(1000)
    short, _ = shelf.put([1, 2, 3])
    other, gone = shelf.put([1, 2, 9, 9])
    assert gone == []
    assert shelf.longest([1, 2, 9, 8]) == (3, other)
    assert shelf.longest([7]) == (0, None)
    assert shelf.longest_whole([1, 2, 3, 4]) == (3, short)
    assert shelf.longest_whole([1, 2, 9]) is None
    assert shelf.use(0) == 3


def test_a_longer_text_takes_the_place_of_what_it_begins_with() -> None:
    """A conversation that has gone on lies there once."""
    shelf = Shelf(1000)
    shelf.put([1, 2, 3])
    shelf.put([4])
    assert shelf.put([1, 2, 3, 4]) == (2, [Forget(0)])
    assert len(shelf) == 2


def test_the_least_recently_used_goes() -> None:
    """Sizes are what was weighed; what was not yet is taken to be like that."""
    shelf = Shelf(100)
    keys = [shelf.put([i] * 10)[0] for i in range(3)]
    assert keys == [0, 1, 2]
    assert shelf.weigh(0, 40) == []
    assert shelf.weigh(1, 40) == []
    shelf.use(0)
    assert shelf.weigh(2, 40) == [Forget(1)]
    assert shelf.n_bytes == 80
    assert shelf.put([7] * 10) == (3, [Forget(2)])  # 4 bytes for a token
    assert shelf.weigh(1, 40) == []  # it is not there any more
    assert shelf.put([8] * 26) == (None, [])  # more than there is room for
    assert shelf.weigh(3, 101) == [Forget(0), Forget(3)]
    assert (len(shelf), shelf.n_bytes) == (0, 0)
    assert Shelf(0).put([1]) == (None, [])


def test_what_memory_has_no_room_for_goes_to_the_disk() -> None:
    """Until there is no room there either; what memory has is preferred; what is forgotten leaves both."""
    shelf = Shelf(100, 150)
    for i in range(2):
        shelf.put([i] * 10)
        assert shelf.weigh(i, 50) == []
    assert shelf.put([2] * 10) == (2, [Spill(0)])
    assert (shelf.n_bytes, shelf.n_disk_bytes, len(shelf)) == (100, 50, 3)
    assert shelf.longest([0, 0, 5]) == (2, 0)
    assert shelf.put([0, 0, 0, 9]) == (3, [Spill(1)])
    assert shelf.weigh(3, 20) == []
    assert shelf.longest([0, 0, 0]) == (3, 3)
    assert shelf.use(0) == 10  # so that 1 is the one that was used least recently
    assert shelf.weigh(3, 100) == [Spill(2)]
    assert shelf.put([4] * 4) == (4, [Spill(3), Forget(1), Forget(0)])
    assert (shelf.n_bytes, shelf.n_disk_bytes) == (100, 150)
    assert shelf.weigh(2, None) == [Forget(2)]
    assert shelf.weigh(2, None) == []
    assert shelf.weigh(4, 200) == [Forget(4)]  # more than the disk has room for
    assert (shelf.n_bytes, shelf.n_disk_bytes, len(shelf)) == (0, 100, 1)
