"""Texts that are judged are data: how they are written into a request, and which of them try to talk to the judge.

`encode` writes any value as one line of JSON in which nothing can pass for a delimiter, a chat template's token or an
invisible character, and which still decodes to the original. `suspect` names texts that speak to a judge instead of to
a user; its phrases are data (prompt_files/suspect_phrases.txt). Attacks and measures: arXiv 2403.17710, 2402.14016
(both show that no filter is complete: this lowers the risk, it does not end it). It knows nothing of prompts or
verdicts.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

# Characters that are not seen, or that move those that are: controls, zero-width, bidi marks, fillers, variation
# selectors, tags.
_HIDDEN = (
    r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_WIDE_MARKS = r"\uff1c\uff1e\uff5c\uff3b\uff3d"  # fullwidth < > | [ ]
_OPEN = r"<\uff1c\u2039\xab\u300a\u3008\u27e8\u27ea\u226a"
_CLOSE = r">\uff1e\u203a\xbb\u300b\u3009\u27e9\u27eb\u226b"
_TOKEN_NAMES = (  # what stands between < and > in the special tokens of today's tokenizers
    r"s|bos|eos|pad|unk|cls|sep|mask|sop|eop|sys|system|user|assistant|human|think|image|video|audio|tool_\w+|"
    r"(?:start|end|begin)_of_\w+|reserved_\w+|unused\d+|extra_id_\d+|_\w+"
)


def _wide(word: str) -> str:
    """A pattern for an ASCII word in which each letter may be large or small, and of normal or full width."""
    return "".join(f"[{c}{c.upper()}{chr(ord(c) + 0xFEE0)}{chr(ord(c.upper()) + 0xFEE0)}]" for c in word)


# The first item is a plain set of characters, which the engine searches for at C speed; what follows looks at the
# neighbours. Only characters that are no part of a JSON escape are ever replaced: upper case letters never are.
_LOOK_ALIKE = re.compile(
    rf"[{_HIDDEN}{_WIDE_MARKS}{_OPEN}{_CLOSE}|\[BE\uff22\uff25\uff42\uff45]"
    rf"(?:(?<=[{_HIDDEN}{_WIDE_MARKS}])"
    rf"|(?<=[{_OPEN}])(?=[{_OPEN}]{{2}})"
    rf"|(?<=[{_CLOSE}])(?=[{_CLOSE}]{{2}})"
    rf"|(?<=<)(?=[|\uff5c]|<?/?(?i:{_TOKEN_NAMES})[>\uff1e])"
    rf"|(?<=\|)(?=[>\uff1e])"
    rf"|(?<=\[)(?=/?(?:{_wide('inst')}|{_wide('system')}_)|(?i:gmask|tool_|available_tools))"
    rf"|(?<=[B\uff22\uff42])(?={_wide('egin')}(?:[\s_-]|\\[nrt])+(?i:answer|conversation|response|data))"
    rf"|(?<=[E\uff25\uff45])(?={_wide('nd')}(?:[\s_-]|\\[nrt])+(?i:answer|conversation|response|data))"
    rf")"
)
_to_json = json.JSONEncoder(ensure_ascii=False).encode


def encode(value: Any) -> str:
    r"""A JSON value on one line, harmless inside a prompt.

    Normal text of any script stays readable. What could pass for something else is written as `\uXXXX`, and
    `json.loads` gives back exactly the value. The one exception no JSON text can express: a high and a low surrogate
    as two separate characters come back as the one character they form.

    Args:
        value: anything `json.dumps` takes.
    """
    return _LOOK_ALIKE.sub(_escaped, _to_json(value))


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def block(name: str, code: str, value: Any) -> str:
    """A value as a data block: two delimiter lines that carry the code, and the encoded value between them."""
    return f"<<<BEGIN {name} {code}>>>\n{encode(value)}\n<<<END {name} {code}>>>"


# ----------------------------------------------------------------------------------------------- suspicious texts

_REPETITION_BYTES = 1000  # shorter texts cannot be called repetitive
_REPETITION_RATIO = 0.05  # deflated size: prose 0.3 to 0.6, tables and poems with a refrain 0.1 and up
_ZERO_WIDTH = r"\u200b-\u200d\u2060-\u2064\ufeff"
_SMUGGLED = re.compile(
    r"(?<!\U0001f3f4)(?<![\U000e0020-\U000e007e])[\U000e0000-\U000e007f]"  # tags that belong to no flag
    r"|[\U000e0000-\U000e007f]{8}"  # more than a flag has
    r"|[\u202d\u202e]"  # marks that write a text backwards
    rf"|[{_ZERO_WIDTH}]{{4}}"
    r"|[\ufe00-\ufe0f\U000e0100-\U000e01ef]{2}"
    rf"|(?:[A-Za-z][{_ZERO_WIDTH}]+){{3}}[A-Za-z]"  # letters of one word, hidden from a search
)
_INVISIBLE = re.compile(f"[{_HIDDEN}]")
_STYLED = re.compile(  # letters in disguise: fullwidth, mathematical, circled
    rf"[{_WIDE_MARKS}\uff21-\uff3a\uff41-\uff5a\U0001d400-\U0001d7ff\u2100-\u214f\u2460-\u24ff]"
)
_RULES_FILE = "prompt_files/suspect_phrases.txt"


@dataclass(frozen=True)
class _Rules:
    """Anchors, and (reason, its anchors, pattern) in the order of the file."""

    anchors: tuple[str, ...]
    rules: tuple[tuple[str, frozenset[str], re.Pattern[str]], ...]


@cache
def _rules(ascii_only: bool) -> _Rules:
    """The rules of the file; `ascii_only` leaves out those that no ASCII text can match."""
    rules, reason = [], ""
    for line in (files("engine.judging") / _RULES_FILE).read_text(encoding="utf-8").splitlines():
        anchors, arrow, pattern = line.partition(" => ")
        if arrow and not line.startswith("#"):
            if anchors.isascii() or not ascii_only:
                rules.append((reason, frozenset(anchors.split(" ; ")), re.compile(pattern)))
        elif line.startswith("["):
            reason = line.strip("[]")
    return _Rules(tuple(sorted(frozenset().union(*(anchors for _, anchors, _ in rules)))), tuple(rules))


def suspect(text: str) -> str | None:
    """Why a text looks as if it talks to its judge.

    Returns:
        "hidden unicode", "injection phrase", "fake verdict", "fake turn" or "repetition"; None for a normal text.
    """
    plain, is_ascii = text, text.isascii()
    if not is_ascii and _INVISIBLE.search(text):
        if _SMUGGLED.search(text):
            return "hidden unicode"
        plain = _INVISIBLE.sub("", text)
    if not is_ascii and _STYLED.search(text):
        plain = unicodedata.normalize("NFKC", plain)
    plain = plain.lower()
    rules = _rules(is_ascii)
    present = {anchor for anchor in rules.anchors if anchor in plain}
    for reason, anchors, pattern in rules.rules:
        if not present.isdisjoint(anchors) and pattern.search(plain):
            return reason
    return "repetition" if _is_repetitive(text) else None


def _is_repetitive(text: str) -> bool:
    if len(text) < _REPETITION_BYTES // 4:  # a character has at most 4 bytes
        return False
    data = text.encode("utf-8", "surrogatepass")
    return len(data) >= _REPETITION_BYTES and len(zlib.compress(data, 1)) < _REPETITION_RATIO * len(data)
