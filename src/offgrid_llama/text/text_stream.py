"""From the bytes of tokens to text: UTF-8 boundaries and stop strings, for a stream that arrives piece by piece.

A piece may end in the middle of a character, and a stop string may be spread over many pieces. So text is released only
once it is certain: its characters are complete, and no stop string can begin in it.

The rule for stop strings: the text ends where the earliest occurrence of any stop string begins. If two begin at the same
place, the shorter one is hit, as it is complete first. Both depend on the text alone, so the outcome is the same however
the bytes were cut into pieces. The price: with the stop strings "abcd" and "bc", the text "abc" decides nothing yet, as
"abcd" would begin earlier than "bc"; the next character, or finish(), decides.

An Aho-Corasick automaton follows all stop strings at once. Its state is the longest end of the text so far that begins a
stop string. So the state itself spells the text held back, and no buffer is needed: the move from a state of depth d to one
of depth e on its failure path releases the first d - e of its characters. Each character deepens the state by at most one,
and each release makes it shallower, so the work is linear in the text and does not grow with the stop strings' number or
length.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TextStream"]


class _Node:
    """A beginning of one or more stop strings.

    ``stop`` is one of them, so ``stop[:depth]`` spells the node. ``fail`` is the node of its longest proper suffix that is
    a beginning as well. ``hit`` is the longest stop string that ends here: the node itself, or else a suffix of it.
    """

    __slots__ = ("depth", "fail", "hit", "next", "stop")

    def __init__(self, depth: int, stop: str) -> None:
        self.depth = depth
        self.stop = stop
        self.next: dict[str, _Node] = {}
        self.fail: _Node = self
        self.hit: str | None = None


def _automaton(stops: Iterable[str]) -> _Node:
    """Return the root of the automaton; time and memory are linear in the sum of the stop strings' lengths."""
    root = _trie(stops)
    _link(root)
    return root


def _trie(stops: Iterable[str]) -> _Node:
    root = _Node(0, "")
    for stop in stops:
        node = root
        for depth, char in enumerate(stop, 1):
            child = node.next.get(char)
            if child is None:
                child = node.next[char] = _Node(depth, stop)
            node = child
        node.hit = stop
    return root


def _link(root: _Node) -> None:
    """Set ``fail`` and ``hit`` of all nodes, level by level: a failure link leads to a smaller depth, which is done."""
    for child in root.next.values():
        child.fail = root
    level = list(root.next.values())
    while level:
        deeper = []
        for node in level:
            for char, child in node.next.items():
                fail = node.fail
                while char not in fail.next and fail is not root:
                    fail = fail.fail
                child.fail = fail.next.get(char, root)
                if child.hit is None:
                    child.hit = child.fail.hit
                deeper.append(child)
        level = deeper


def _check_stop(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"stop: must be a string or strings, not {type(text).__name__}")
    if not text:
        raise ValueError("stop: a stop string must have at least one character")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"stop: {text!r} has a lone surrogate, which never occurs in decoded text")


class TextStream:
    r"""Bytes in, text out. One stream serves one generation on one thread.

    ``stop`` is a string, or strings, that end the text; none of them empty, none by default. With ``include_stop`` the
    output ends with the stop string that was hit; by default it ends before it.

    Bytes that are no UTF-8 become U+FFFD, exactly as in ``bytes.decode("utf-8", "replace")`` of all bytes. Stop strings
    are found in the decoded text.

    >>> stream = TextStream(stop="</s>")
    >>> stream.push(b"caf\xc3"), stream.push(b"\xa9 <"), stream.push(b"/s"), stream.push(b"> more"), stream.stopped
    ('caf', 'é ', '', '', '</s>')

    Raises ``TypeError`` if ``stop`` has something other than strings, ``ValueError`` if one is empty or has a lone
    surrogate, which UTF-8 text never has.
    """

    def __init__(self, stop: str | Iterable[str] = (), *, include_stop: bool = False) -> None:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        for text in stops:
            _check_stop(text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._include_stop = include_stop
        self._stopped: str | None = None
        self._finished = False
        self._root = self._node = _automaton(stops)
        # While no stop string has begun, only first characters matter, and a regular expression finds them in C.
        self._first = re.compile("|".join(sorted({re.escape(text[0]) for text in stops})))
        # A stop string that is complete while an earlier one is still possible, and the number of characters before it
        # in the text that the state spells.
        self._pending: str | None = None
        self._pending_at = 0
        self.steps = 0  # moves of the automaton so far, at most two a character

    @property
    def stopped(self) -> str | None:
        """The stop string that was hit, or None. No text is released after it."""
        return self._stopped

    def push(self, piece: bytes) -> str:
        """Add bytes, and return the text that has become certain, which may be "".

        After a stop string was hit it returns "" for any bytes, so that an engine may push the rest of a step. Raises
        ``ValueError`` after finish().
        """
        if self._finished:
            raise ValueError("push() after finish(): the text is complete; make a new TextStream")
        if self._stopped is not None:
            return ""
        text = self._decoder.decode(piece)
        return self._scan(text) if self._root.next else text

    def finish(self) -> str:
        """End the stream, and return the rest of the text. Incomplete characters become U+FFFD.

        The rest ends before a stop string that is complete by now. A second call returns "".
        """
        if self._finished:
            return ""
        self._finished = True
        if self._stopped is not None:
            return ""
        text = self._decoder.decode(b"", True)
        if not self._root.next:
            return text
        text = self._scan(text)
        if self.stopped is not None:
            return text
        if self._pending is not None:
            return text + self._stop(self._pending, self._pending_at)
        return text + self._node.stop[: self._node.depth]

    def _scan(self, text: str) -> str:
        """Move the automaton over ``text``, and return the text that is certain."""
        root: _Node = self._root
        node: _Node = self._node
        out: list[str] = []
        at, end = 0, len(text)
        while at < end:
            if node is root:
                found = self._first.search(text, at)
                start = found.start() if found else end
                out.append(text[at:start])
                if start == end:
                    break
                at = start
            char = text[at]
            at += 1
            self.steps += 1
            while char not in node.next and node is not root:
                self.steps += 1
                released = node.depth - node.fail.depth
                if self._pending is not None and released >= self._pending_at:
                    self._node = node
                    out.append(self._stop(self._pending, self._pending_at))
                    return "".join(out)
                out.append(node.stop[:released])
                self._pending_at -= released
                node = node.fail
            if char not in node.next:
                out.append(char)
                continue
            node = node.next[char]
            if node.hit is not None:
                begins = node.depth - len(node.hit)
                if self._pending is None or begins < self._pending_at:
                    self._pending, self._pending_at = node.hit, begins
                if begins == 0:  # no stop string can begin earlier
                    self._node = node
                    out.append(self._stop(node.hit, 0))
                    return "".join(out)
        self._node = node
        return "".join(out)

    def _stop(self, stop: str, begins: int) -> str:
        """End the text at ``begins`` characters into the current state, and return the last of it."""
        self._stopped = stop
        before = self._node.stop[:begins]
        return before + stop if self._include_stop else before
