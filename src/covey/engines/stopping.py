"""Whether a completion has just written one of its stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text, as rewards see it"""

# Cut off from what stood before, the first characters of a tail may come out broken: up to three pieces of a character, and
# a space that tokenizers drop at the beginning. As many may hang at its end, until the last token completes them.
_MARGIN = 8


def completes_stop(token_ids: Sequence[int], stop: Sequence[str], decode: Decode) -> bool:
    """Return whether the text of `token_ids` holds a stop string that ends, or lies, in the text of the last token.

    Only a tail is decoded: the last token, and before it as many as hold more text than the longest stop string. So it
    answers for the whole text if it was asked after each token before.
    """
    longest = max(len(text) for text in stop)
    size = longest + _MARGIN + 1
    while True:
        tail = token_ids[-size:]
        text = decode(tail)
        if any(end in text for end in stop):
            return True
        # Some tokens have no text, so tokens cannot stand for characters.
        if size >= len(token_ids) or len(decode(tail[:-1])) >= longest + _MARGIN:
            return False
        size *= 2
