"""An estimate of a text's tokens, without the judge's tokenizer."""

from __future__ import annotations

import json
import re

# A digit, a sign and a space count one token each, as in the tokenizers with the most tokens. A
# well-known word counts one, a syllable of frequent letters one, any other letter one. The estimate
# was measured on json.dumps(text) against cl100k, cl100k with each digit apart (as Qwen counts) and
# Anthropic's published tokenizer. The lowest estimate / real: 1.14 on condensed runs (1.8 with
# cl100k), 1.4 on simulated prompts and answers, 2.3 on English, 1.21 on Japanese, 1.27 on emoji,
# 1.28 on random signs of all Unicode, 1.2 on random letters, 1.09 on hex; 1.00 on digits between
# spaces, of which both count every byte.
_WORDS = (
    "the to of and is in for that this with will be on as it are my at by no not has have from so "
    "but or more than would should could time now new only over price market markets buy sell hold "
    "shares position positions trade balance risk edge because profit loss strong likely current "
    "high low up down good before against steps first last YES NO BUY The"
).replace(" ", "|")
_SYLLABLE = "[bcdfghlmnprst]?[aeiouy][lmnrst]?"
_PIECE = re.compile(
    rf" ?(?:(?:{_WORDS})(?![A-Za-z])|{_SYLLABLE}|[BCDFGHLMNPRST][aeiouy][lmnrst]?"
    rf"|[AEIOUY][lmnrst]|{_SYLLABLE.upper()}|[A-Za-z]|[^\sA-Za-z\d])|\d|\s"
)


def estimate_tokens(text: str) -> int:
    """Return the tokens of the text inside a JSON string; rather too many than too few."""
    return len(_PIECE.findall(json.dumps(text)[1:-1]))
