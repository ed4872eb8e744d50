"""PrefixIndex: token ids of several texts, and the longest prefix that a new text shares with them (a radix tree, pure)."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Iterator, Set
from typing import Generic, TypeVar

__all__ = ["PrefixIndex"]

_H = TypeVar("_H", bound=Hashable)


class _Node(Generic[_H]):
    """The tokens between two places where texts part, and the holders whose text contains all of them."""

    __slots__ = ("children", "edge", "holders", "parent")

    def __init__(self, parent: _Node[_H] | None, edge: array[int], holders: Iterable[_H] = ()) -> None:
        self.parent = self if parent is None else parent
        self.edge = edge
        self.children: dict[int, _Node[_H]] = {}
        self.holders: dict[_H, None] = dict.fromkeys(holders)  # in order of arrival


class PrefixIndex(Generic[_H]):
    """The token ids of each holder, found by their prefix. The time of a look-up grows only with its match.

    A holder is the caller's name for a text, such as a sequence id.
    """

    def __init__(self) -> None:
        self._root: _Node[_H] = _Node(None, array("i"))
        self._ends: dict[_H, _Node[_H]] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, holder: object) -> bool:
        return holder in self._ends

    def tokens(self, holder: _H) -> list[int]:
        """Return the token ids of a holder."""
        edges = []
        node = self._ends[holder]
        while node is not self._root:
            edges.append(node.edge)
            node = node.parent
        return [token for edge in reversed(edges) for token in edge]

    def extend(self, holder: _H, tokens: Iterable[int]) -> None:
        """Append token ids to the text of a holder, a new one or a known one."""
        end = start = self._ends.setdefault(holder, self._root)
        rest = array("i", tokens)
        if end is not self._root and not end.children and len(end.holders) == 1:
            end.edge.extend(rest)
            return
        begin = 0
        while begin < len(rest):
            child = end.children.get(rest[begin])
            if child is None:
                child = end.children[rest[begin]] = _Node(end, rest[begin:])
            shared = _shared(child.edge, rest, begin)
            if shared < len(child.edge):
                child = self._split(child, shared)
            child.holders[holder] = None
            begin += shared
            end = child
        self._ends[holder] = end
        if end is not start is not self._root:
            self._join(start)

    def remove(self, holder: _H) -> None:
        """Forget a holder."""
        node = self._ends.pop(holder)
        while node is not self._root:
            parent = node.parent
            del node.holders[holder]
            if not node.holders:
                del parent.children[node.edge[0]]
            else:
                self._join(node)
            node = parent

    def truncate(self, holder: _H, length: int) -> None:
        """Keep the first ``length`` token ids of a holder."""
        kept = self.tokens(holder)[:length]
        self.remove(holder)
        self.extend(holder, kept)

    def longest(self, tokens: Iterable[int]) -> tuple[int, Set[_H]]:
        """Return the length of the longest prefix of ``tokens`` that a holder has, and all holders that have it."""
        wanted = array("i", tokens)
        node, found = self._root, 0
        while found < len(wanted):
            child = node.children.get(wanted[found])
            if child is None:
                break
            shared = _shared(child.edge, wanted, found)
            found += shared
            node = child
            if shared < len(child.edge):
                break
        return found, node.holders.keys()

    def begins(self) -> Set[int]:
        """Return the first tokens of all texts."""
        return self._root.children.keys()

    def begun_by(self, tokens: Iterable[int]) -> Iterator[tuple[_H, int]]:
        """Yield the holders whose whole text is a prefix of ``tokens``, each with its length, the shortest first."""
        wanted = array("i", tokens)
        node, found = self._root, 0
        while found < len(wanted):
            child = node.children.get(wanted[found])
            if child is None or _shared(child.edge, wanted, found) < len(child.edge):
                return
            found += len(child.edge)
            node = child
            yield from ((holder, found) for holder in node.holders if self._ends[holder] is node)

    def _split(self, node: _Node[_H], at: int) -> _Node[_H]:
        """Split a node's edge; return the first half, a new node: holders point to the second one."""
        first = _Node(node.parent, node.edge[:at], node.holders)
        node.parent.children[first.edge[0]] = first
        node.edge = node.edge[at:]
        node.parent = first
        first.children[node.edge[0]] = node
        return first

    def _join(self, node: _Node[_H]) -> None:
        """Join a node with its only child, where no text ends between them."""
        if len(node.children) != 1:
            return
        (child,) = node.children.values()
        if len(child.holders) == len(node.holders):
            child.edge = node.edge + child.edge
            child.parent = node.parent
            node.parent.children[child.edge[0]] = child


def _shared(edge: array[int], tokens: array[int], begin: int) -> int:
    """Return the length of the prefix that ``edge`` shares with ``tokens[begin:]``; compares slices, not single tokens."""
    low, high = 0, min(len(edge), len(tokens) - begin)
    if edge[:high] == tokens[begin : begin + high]:
        return high
    while low + 1 < high:  # the texts part between the two
        middle = (low + high) // 2
        if edge[low:middle] == tokens[begin + low : begin + middle]:
            low = middle
        else:
            high = middle
    return low
