"""Tokens as they come -> text as it may be shown: nothing is taken back, and stop texts end it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from spatialllm_jax.data.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"      # what bytes decode to before the rest of their character has come


class Words:
    """The text of one answer, piece by piece. All pieces together are `Tokenizer.decode` of all tokens, up to the
    first stop text.

    Attributes:
        finish: "" while it goes on, then "stop" (an end mark or a stop text) or "length".
        count: tokens so far, an end mark included.
    """

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int], stop: Sequence[str] = ()):
        """`ends` are token ids, `stop` texts that are no part of the answer."""
        self.finish, self.count = "", 0
        self._tokenizer, self._ends, self._stop = tokenizer, ends, tuple(stop)
        self._tokens: list[int] = []
        self._shown = 0

    def add(self, tokens: Sequence[int], ended: bool) -> str:
        """What can be shown after these tokens, and was not before.

        Args:
            ended: whether no more will come.
        """
        self.count += len(tokens)
        marked = bool(tokens) and tokens[-1] in self._ends
        self._tokens += [token for token in tokens if token not in self._ends]
        text = self._tokenizer.backend.decode(self._tokens, skip_special_tokens=True).lstrip()
        if found := [at for word in self._stop if (at := text.find(word)) >= 0]:
            text, self.finish = text[:min(found)].rstrip(), "stop"
        elif ended:
            text, self.finish = text.rstrip(), "stop" if marked else "length"
        else:
            text = self._certain(text)
        piece, self._shown = text[self._shown:], max(self._shown, len(text))
        return piece

    def _certain(self, text: str) -> str:
        """The part that stays whatever follows: no half characters, no beginning of a stop text, no last blanks."""
        text = text.rstrip(_UNFINISHED)
        held = max((size for word in self._stop for size in range(1, min(len(word), len(text) + 1))
                    if text.endswith(word[:size])), default=0)
        return text[:len(text) - held].rstrip()
