"""Whether a response was cut off by its token limit, which most apps do not record."""

from __future__ import annotations

import msgspec

_CHARACTERS_A_TOKEN = 3.5  # at least, of English and JSON, in common vocabularies
_SENTENCE_ENDS = frozenset(".!?…\"'\u201d\u2019)]}*`:;|>")

_json_decoder = msgspec.json.Decoder(msgspec.Raw)


def is_truncated(response: str, max_tokens: float | None) -> bool:
    """Tell whether a response was cut off by its token limit; the app does not record it.

    It was cut off if it is JSON that ends too early, or has a code block without an end, or is as
    long as `max_tokens` allow (3.5 characters a token) and does not end a sentence.
    """
    text = response.strip()
    if text[:1] in ("{", "["):
        try:
            _json_decoder.decode(text)
        except msgspec.DecodeError as error:
            # For the decoder "12." and "-" are invalid numbers, with the error after the last byte.
            if str(error).endswith(("truncated", f"(byte {len(text.encode())})")):
                return True
            # Otherwise it only begins like JSON: "[BUY] because …".
        except RecursionError:
            return False
        else:
            return False
    if text.count("```") % 2:
        return True
    if max_tokens is None or not max_tokens > 0:  # NaN is no limit either
        return False
    return len(text) >= max_tokens * _CHARACTERS_A_TOKEN and text[-1] not in _SENTENCE_ENDS
