"""A suffix automaton over token ids: what came after the last time that the text read like this.

The automaton of a text recognises all its substrings with at most 2n states and grows by a token in amortised
O(1) (Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"). Following the longest
suffix of a text that also occurs elsewhere gives drafts that cost no pass of a model (Hu et al. 2024, "SAM
Decoding", arXiv 2411.10666).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

_NONE = -1
_ROOT = 0
# Links that a token may follow to note its place as the latest. In one token repeated n times there are n of
# them; what is beyond keeps an occurrence that is right, only not the latest.
_REFRESHED_ANCESTORS = 32


class SuffixAutomaton:
    """The suffix automaton of a growing text, with the longest suffix that occurred before its end.

    A state stands for substrings that end at the same places. Most states have one transition, held by two
    arrays; the others have a dictionary: 25 to 230 bytes a token of text, not the 1,000 of an object a state.

    Args:
        tokens: token ids that the text begins with.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens = array("i")
        # By state: length of its longest substring, suffix link, where its latest known occurrence ends.
        self._length = array("i", [0])
        self._link = array("i", [_NONE])
        self._end = array("i", [0])
        # By state: its only transition, and all of them where there are several.
        self._label = array("i", [_NONE])
        self._target = array("i", [_NONE])
        self._branches: dict[int, dict[int, int]] = {}
        self._last = _ROOT
        self.match_length = 0
        self.match_end = 0
        for token in tokens:
            self.extend(token)

    def __len__(self) -> int:
        """Number of tokens of the text."""
        return len(self.tokens)

    def extend(self, token: int) -> None:
        """Append a token of the text; amortised O(1).

        Args:
            token: its id, from 0 to 2^31 - 1.

        Raises:
            ValueError: the id is negative.
            OverflowError: the id does not fit into 32 bits.
        """
        if token < 0:
            raise ValueError(f"token {token}: ids begin at 0")
        self.tokens.append(token)
        new = self._add_state(self._length[self._last] + 1, _ROOT, len(self.tokens))
        state = self._last
        while state != _NONE and (following := self.step(state, token)) == _NONE:
            self._connect(state, token, new)
            state = self._link[state]
        if state != _NONE:
            self._link[new] = self._target_of_length(state, token, following)
        self._last = new
        self._note_match(self._link[new])

    def step(self, state: int, token: int) -> int:
        """The state after reading `token` in `state`, -1 where the text never goes on like that."""
        if self._label[state] == token:
            return self._target[state]
        branches = self._branches.get(state)
        return _NONE if branches is None else branches.get(token, _NONE)

    def draft(self, limit: int) -> list[int]:
        """Up to `limit` tokens that followed the latest earlier occurrence of the longest repeated suffix.

        At the end of the text, copying goes on from the draft itself, as in LZ77: a periodic text goes on for
        as long as asked. Empty where the last token is new.
        """
        if not self.match_length or limit <= 0:
            return []
        return self._copy(self.match_end, limit, periodic=True)

    def _copy(self, begin: int, limit: int, periodic: bool = False) -> list[int]:
        """Tokens [begin, begin + limit) of the text, which at its end goes on by repeating from `begin`."""
        copied = self.tokens[begin : begin + limit].tolist()
        if periodic and copied and len(copied) < limit:
            copied = (copied * (limit // len(copied) + 1))[:limit]
        return copied

    def _add_state(self, length: int, link: int, end: int) -> int:
        self._length.append(length)
        self._link.append(link)
        self._end.append(end)
        self._label.append(_NONE)
        self._target.append(_NONE)
        return len(self._length) - 1

    def _connect(self, state: int, token: int, target: int) -> None:
        """Add a transition, or turn it elsewhere."""
        if self._label[state] in (token, _NONE):
            self._label[state], self._target[state] = token, target
        else:
            self._branches.setdefault(state, {})[token] = target

    def _target_of_length(self, state: int, token: int, following: int) -> int:
        """The state whose longest substring is that of `state` with `token`: `following`, or its clone."""
        length = self._length[state] + 1
        if self._length[following] == length:
            return following
        clone = self._add_state(length, self._link[following], self._end[following])
        self._label[clone], self._target[clone] = self._label[following], self._target[following]
        if following in self._branches:
            self._branches[clone] = dict(self._branches[following])
        self._link[following] = clone
        while state != _NONE and self.step(state, token) == following:
            self._connect(state, token, clone)
            state = self._link[state]
        return clone

    def _note_match(self, state: int) -> None:
        """Keep the new end's longest earlier occurrence, and make this one the latest of all its suffixes.

        The suffix link of the whole text is the longest suffix that occurs twice. Its `_end` is read before
        it is overwritten: it is that of the occurrence before this one.
        """
        self.match_length = self._length[state]
        self.match_end = self._end[state]
        end = len(self.tokens)
        for _ in range(_REFRESHED_ANCESTORS):
            if state == _ROOT:
                break
            self._end[state] = end
            state = self._link[state]


class Cursor:
    """Follows a text of its own through the automaton of another, which it leaves as it is.

    So several requests can share the automaton of a corpus. Amortised O(1) a token.

    Args:
        automaton: the corpus; it must not grow while cursors stand in it.
    """

    def __init__(self, automaton: SuffixAutomaton) -> None:
        self._automaton = automaton
        self._state = _ROOT
        self.match_length = 0

    def advance(self, token: int) -> None:
        """Read a token: the match grows by it, or falls back to the longest suffix that the corpus holds."""
        corpus = self._automaton
        state = self._state
        while (following := corpus.step(state, token)) == _NONE and state != _ROOT:
            state = corpus._link[state]
            self.match_length = corpus._length[state]
        if following == _NONE:
            self._state, self.match_length = _ROOT, 0
        else:
            self._state, self.match_length = following, self.match_length + 1

    def draft(self, limit: int) -> list[int]:
        """Up to `limit` tokens that follow the match in the corpus; fewer near its end."""
        if not self.match_length or limit <= 0:
            return []
        corpus = self._automaton
        state = self._state
        while corpus._target[state] == _NONE:  # found at the corpus's very end only: a shorter match goes on
            state = corpus._link[state]
        if state == _ROOT:
            return []
        begin = corpus._end[state]
        if begin == len(corpus):
            begin = corpus._end[corpus._target[state]] - 1
        return corpus._copy(begin, limit)
