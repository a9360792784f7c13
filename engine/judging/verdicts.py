"""Reading a judge's reply: a verdict, a rating, a pair of scores, or the probabilities of the verdicts.

One tolerant parser for every prompt (reference: the published parsers of Cherry LLM, AlpaGasus and Auto-J, which this
one agrees with on 5,888 real replies). It never guesses: a reply that says nothing, or two things, is None, and the
caller asks again. Forms are tried from the most explicit to the least; the first form that occurs decides. It knows
nothing of prompts or models.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

Found = tuple[Any, int]  # (what is said, None when it cannot be understood; where the value starts, -1 when unclear)

_LONGEST = 80  # characters of a line or value that can be a verdict
_FEWEST_MASS = 0.5  # probabilities are normalised over the labels only where these have at least half of the mass
_TIE = (
    r"(?:an?\s+|it'?s\s+a\s+)?(?:tie|tied|draw)|(?:both\s+(?:\w+\s+)?(?:are\s+)?)?equal(?:ly\s+good)?"
    r"|neither\s+is\s+better"
)
_NOUN = r"(?:answer|response|assistant|option|candidate|model|output)"
_OPENING, _CLOSING = r"""[\s*_"'`(\[{]*""", r"""[\s*_"'`)\]}.!]*"""


def parse_verdict(text: str, labels: Sequence[str]) -> str | None:
    """The label that a reply decides for.

    Forms: JSON with a "verdict" (alone, fenced, in prose), `[[A]]` and `[[A>>B]]`, "Verdict: A" and its like, a reply
    whose first or last line is only a label. Words for a tie count where "tie" is a label. Whatever precedes
    `</think>` is no reply.

    Args:
        text: the reply.
        labels: such as ("A", "B", "tie").

    Returns:
        One of `labels`; None when there is no verdict or more than one.
    """
    return _verdict(text, tuple(labels))[0]


def verdict_probabilities(tokens: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, float] | None:
    """Probabilities of the labels at the token where the verdict's value starts.

    A token counts for a label when its letters begin that label and no other one (G-Eval, arXiv 2303.16634, weighs
    scores alike).

    Args:
        tokens: `logprobs.content` of a chat completion: {"token", "logprob", "top_logprobs": [{"token", "logprob"}]},
            natural logarithms.
        labels: as for `parse_verdict`.

    Returns:
        Every label with its probability, summing to 1; None when the reply has no verdict, the verdict is not written
        as its label, there are no alternatives, or labels have less than half of the mass.
    """
    words = [str(token.get("token") or "") for token in tokens]
    text = "".join(words)
    label, position = _verdict(text, tuple(labels))
    if label is None or position < 0:
        return None
    ends = list(accumulate(len(word) for word in words))
    index = bisect_right(ends, position)  # the token that holds the first letter of the value
    listed = tokens[index].get("top_logprobs")
    top = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    lead = words[index][: position - ends[index] + len(words[index])].strip()
    if not top or _owner(words[index], lead, labels) != label:
        return None
    chances = {str(one.get("token") or ""): one.get("logprob") for one in (tokens[index], *top)}
    mass = dict.fromkeys(labels, 0.0)
    for word, logprob in chances.items():
        owner = _owner(word, lead, labels)
        if owner is not None and isinstance(logprob, (int, float)) and not math.isnan(logprob):
            mass[owner] += math.exp(min(logprob, 0.0))
    total = sum(mass.values())
    if total < _FEWEST_MASS:
        return None
    return {name: value / total for name, value in mass.items()}


def _owner(word: str, lead: str, labels: Sequence[str]) -> str | None:
    """The one label that a token begins, after the same marks as the token that was written."""
    rest = word.strip()
    if not rest.startswith(lead):
        return None
    letters = re.match(r"\w*", rest[len(lead) :])[0].casefold()  # type: ignore[index]
    fits = [label for label in labels if letters and label.casefold().startswith(letters)]
    return fits[0] if len(fits) == 1 else None


def _verdict(text: str, labels: tuple[str, ...]) -> Found:
    reply, offset = after_thinking(text)
    for form in (_json_verdicts, _bracket_verdicts, _keyword_verdicts, _line_verdicts):
        found = list(form(reply, labels))
        if found:
            value, position = _agreed(found)
            return value, position + offset if position >= 0 else -1
    return None, -1


def _json_verdicts(reply: str, labels: tuple[str, ...]) -> Iterator[Found]:
    whole = False
    for start, end, value in _values(reply, ("verdict",)):
        whole = True
        label = _label(value, labels) if isinstance(value, str) else None
        key = re.compile(r'"verdict"\s*:\s*"').search(reply, start, end)
        yield label, key.end() if key and value == label else -1
    if not whole:  # broken JSON: cut off after the value, or quoted in another way
        pattern = r"""[{,]\s*["']?verdict["']?\s*:\s*(?:"([^"\n]*)"|'([^'\n]*)'|(\w+))\s*(?=[,}]|\Z)"""
        for match in re.finditer(pattern, reply, re.IGNORECASE):
            value, position = match[match.lastindex or 0], match.start(match.lastindex or 0)
            label = _label(value, labels)
            yield label, position if value == label else -1


def _bracket_verdicts(reply: str, labels: tuple[str, ...]) -> Iterator[Found]:
    for match in re.finditer(r"\[\[\s*([^\[\]\n]{1,24}?)\s*\]\]", reply):
        said = "tie" if match[1] == "C" and "C" not in labels else match[1]  # [[C]] is MT-Bench's tie
        label = _label(said, labels)
        if label is not None:
            yield label, match.start(1) if match[1] == label else -1


def _keyword_verdicts(reply: str, labels: tuple[str, ...]) -> Iterator[Found]:
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    better = r"(?:the\s+)?(?:\w+ly\s+)?(?:better|best|winner|stronger|superior|preferred)"
    pattern = (
        rf"(?<![\w\"'])(?i:verdict|winner|decision|judge?ment|choice|preference|(?:better|best|preferred)\s+{_NOUN})"
        rf"[*_\"'`]*\s*(?:(?i:is|goes\s+to)\b|[:=])[:=]?{_OPENING}"
        rf"(?P<said>(?i:{_TIE})|(?i:(?:the\s+)?{_NOUN}\s+)?(?:{names}))(?!\w)"
        rf"(?!\s*[,/|&]\s*[\"']?(?:{names})\b)"
        rf"(?=[*_\"'`)\]}}]*(?:\s*(?:[.,;:!(\n\u2013\u2014-]|\Z)|\s+(?i:is|was)\s+(?i:{better})|\s+(?i:because|since|wins|over)\b))"
    )
    for match in re.finditer(pattern, reply):
        label = _label(match["said"], labels)
        yield label, match.start("said") if match["said"] == label else -1


def _line_verdicts(reply: str, labels: tuple[str, ...]) -> Iterator[Found]:
    lines = [match for match in re.finditer(r"[^\n]+", reply) if match[0].strip()]
    for line in lines[:1] + lines[1:][-1:]:
        inner = re.fullmatch(rf"{_OPENING}(.+?){_CLOSING}", line[0]) if len(line[0]) <= _LONGEST else None
        if inner is None:
            continue
        said = re.sub(r"(?i)\s+(?:is|was)\s+(?:the\s+)?(?:better|best)(?:\s+(?:one|answer|response))?$", "", inner[1])
        label = _label(said, labels)
        if label is not None:
            yield label, line.start() + inner.start(1) if inner[1] == label else -1


def _label(said: str, labels: Sequence[str]) -> str | None:
    """The label that a few words stand for: itself, "Answer A", "A>>B" and "B<A", "A=B", a word for a tie."""
    if len(said) > _LONGEST:
        return None
    word = re.fullmatch(rf"(?is){_OPENING}(?:(?:the\s+)?{_NOUN}\s+)?(.*?){_CLOSING}", said)[1].casefold()  # type: ignore[index]
    named = {label.casefold(): label for label in labels}
    if word in named:
        return named[word]
    pair = re.fullmatch(r"(\w+)\s*(>{1,3}|<{1,3}|=)\s*(\w+)", word)
    if pair and {pair[1], pair[3]} == set(named) - {"tie"}:
        return named.get("tie") if pair[2] == "=" else named[pair[1] if pair[2][0] == ">" else pair[3]]
    return named.get("tie") if re.fullmatch(_TIE, word) else None


# ----------------------------------------------------------------------------------------------- numbers

_NUMBER = r"(?<![\w.,/:+-])([-+]?\d{1,3}(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*(\d{1,3}(?:\.\d+)?))?(?![\w/%]|[.,:-]\d)"
_ALONE = rf"[\s*_`\"'(\[]*{_NUMBER}[\s*_`\"')\].]*"
_TEN = (0.0, 10.0)
_RANGE = r"(?!\s*(?:-|\u2013|\u2014|to\b|or\b|and\b)\s*\d)"


def parse_rating(text: str, parser: str, scale: tuple[float, float] | None) -> float | None:
    """The rating that a reply gives.

    Forms: JSON with a "score" or "rating", `[[8]]`, "Score: 8" or "rating of 4.5 out of 5", a number alone in the first
    line. The parser "number_line" looks at the first line first, "score_line" at a last line "Score: 8"; reasons that
    weigh other scores do not count then.

    Args:
        text: the reply.
        parser: "rating", "number_line" or "score_line".
        scale: (lowest, highest); a rating outside of it is None, and so is "8/10" on another scale. None: any number.
    """
    reply, _ = after_thinking(text)
    forms = [_json_ratings, _bracket_ratings, _keyword_ratings, _line_ratings]
    first = {"number_line": [_line_ratings], "score_line": [_last_line_ratings]}.get(parser, [])
    for form in [*first, *(one for one in forms if one not in first)]:
        found = [(_rating(value, scale), -1) for value in form(reply)]
        if found:
            return _agreed(found)[0]
    return None


def _json_ratings(reply: str) -> Iterator[str]:
    for _, _, value in _values(reply, ("score", "rating")):
        yield str(value)


def _bracket_ratings(reply: str) -> Iterator[str]:
    for match in re.finditer(r"\[\[([^\[\]\n]{1,16})\]\]", reply):
        if re.fullmatch(_ALONE, match[1]):
            yield match[1]


def _keyword_ratings(reply: str) -> Iterator[str]:
    pattern = rf"(?i)\b(?:score|rating|grade)\b[*_\"'`]*\s*(?:(?:is|of)\b|[:=])[:=]?[\s*_\"'`(\[]*({_NUMBER}){_RANGE}"
    for match in re.finditer(pattern, reply):
        yield match[1]


def _line_ratings(reply: str) -> Iterator[str]:
    first = reply.strip().partition("\n")[0]
    if re.fullmatch(_ALONE, first):
        yield first


def _last_line_ratings(reply: str) -> Iterator[str]:
    last = reply.strip().rpartition("\n")[2]
    match = re.fullmatch(rf"(?i)[\s*_#]*(?:(?:final|overall)\s+)?(?:score|rating)[*_\"'`]*\s*[:=]({_ALONE})", last)
    if match:
        yield match[1]


def _rating(said: str, scale: tuple[float, float] | None) -> float | None:
    match = re.fullmatch(_ALONE, said)
    if match is None:
        return None
    value = float(match[1])
    if scale is None:
        return None if match[2] else value
    fits = scale[0] <= value <= scale[1] and (match[2] is None or float(match[2]) == scale[1])
    return value if fits else None


def expected_rating(
    tokens: Sequence[Mapping[str, Any]], parser: str, scale: tuple[float, float] | None
) -> float | None:
    """The mean of the whole scores of a scale, weighted by their probabilities where the reply writes its score.

    sum of k p_k over the digits k, with p normalised over them, as DEITA's scorers (arXiv 2312.15685) and G-Eval.

    Args:
        tokens: as for `verdict_probabilities`.
        parser, scale: as for `parse_rating`; the scale lies between 0 and 9.

    Returns:
        None when the reply has no rating, or one that is not a single digit, when there are no alternatives, or when
        the digits of the scale have less than half of the mass.
    """
    words = [str(token.get("token") or "") for token in tokens]
    text = "".join(words)
    written = parse_rating(text, parser, scale)
    if scale is None or written is None or written != int(written):
        return None
    start = after_thinking(text)[1]
    forms = (
        r"""["'](?:score|rating)["']\s*:\s*["']?(\d)""",
        r"\b(?:score|rating)\b\W{0,9}(?:is\s+|of\s+)?(\d)",
        r"(\d)",
    )
    places = [match.start(1) for form in forms for match in re.finditer(rf"(?i){form}(?![\d.]\d|\d)", text[start:])]
    place = next((start + found for found in places if text[start + found] == f"{written:g}"), -1)
    if place < 0:
        return None
    ends = list(accumulate(len(word) for word in words))
    index = bisect_right(ends, place)
    lead = words[index][: place - ends[index] + len(words[index])].strip()
    listed = tokens[index].get("top_logprobs")
    top = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    chances = {str(one.get("token") or ""): one.get("logprob") for one in (tokens[index], *top)} if top else {}
    mass: dict[int, float] = {}
    for word, logprob in chances.items():
        digit = re.fullmatch(rf"{re.escape(lead)}(\d)\D*", word.strip())
        if digit and scale[0] <= int(digit[1]) <= scale[1] and isinstance(logprob, (int, float)) and logprob == logprob:
            mass[int(digit[1])] = mass.get(int(digit[1]), 0.0) + math.exp(min(logprob, 0.0))
    total = math.fsum(mass.values())
    return math.fsum(k * p for k, p in mass.items()) / total if total >= _FEWEST_MASS else None


def parse_score_pair(text: str) -> tuple[float, float] | None:
    """The scores of (first, second) answer, out of 10.

    Forms: the first line holds exactly two numbers ("8 7", "8, 7", "8 / 7", "8/10 7/10", "Scores: 8 and 7"), the first
    two lines hold one number each, or both are labelled ("Assistant 1: 8 ... Assistant 2: 7"), in any order. "8/10"
    alone is one score, not two. None when a score is missing, doubled with another value, or outside 0 to 10 (judges
    that were asked for 1 to 10 do give 0).
    """
    lines = [line for line in after_thinking(text)[0].splitlines() if line.strip()]
    head = re.sub(r"(?i)^[\s*_#]*(?:the\s+)?scores?[*_]*\s*(?::|are)[*_]*", "", lines[0]) if lines else ""
    alone = [re.fullmatch(_ALONE, line) for line in (head, *lines[1:2])]
    pair = re.fullmatch(rf"[\s*_`\"'(\[]*{_NUMBER}(?:[\s*_`]*[,;&|][\s*_`]*|[\s*_`]+(?:and\s+)?){_ALONE}", head)
    if pair:
        scores = [_rating(f"{pair[1]}/{pair[2] or 10}", _TEN), _rating(f"{pair[3]}/{pair[4] or 10}", _TEN)]
    elif alone and alone[0] and alone[0][2] and float(alone[0][2]) != _TEN[1]:
        scores = [_rating(alone[0][1], _TEN), _rating(alone[0][2], _TEN)]
    elif len(alone) == 2 and alone[0] and alone[1]:
        scores = [_rating(alone[0][0], _TEN), _rating(alone[1][0], _TEN)]
    else:
        scores = _labelled_scores(lines)
    first, second = scores
    return None if first is None or second is None else (first, second)


def _labelled_scores(lines: Sequence[str]) -> list[float | None]:
    pattern = (
        rf"(?i)\b{_NOUN}\s*(?:([1a])|([2b]))\b(?:'s)?(?:\s+(?:overall\s+)?(?:score|rating))?[*_\"'`)]*\s*[:=][\s*_\"'`(\[]*"
        rf"(?:(?:overall\s+)?(?:score|rating)[*_]*\s*[:=][\s*_]*)?({_NUMBER}){_RANGE}(?=[\s*_\"'`)\]]*(?:\Z|[,;|.(\n]|and\b|{_NOUN}))"
    )
    said: tuple[list[Found], list[Found]] = ([], [])
    for match in re.finditer(pattern, "\n".join(lines)):
        said[0 if match[1] else 1].append((_rating(match[3], _TEN), -1))
    return [_agreed(found)[0] if found else None for found in said]


# ----------------------------------------------------------------------------------------------- shared


def after_thinking(text: str) -> tuple[str, int]:
    """The reply proper and where it starts; nothing of a reply that broke off while thinking."""
    start = text.rfind("</think>")
    if start >= 0:
        return text[start + 8 :], start + 8
    return ("", len(text)) if text.lstrip().startswith("<think>") else (text, 0)


def _agreed(found: Sequence[Found]) -> Found:
    """The first of several statements when all say the same, else nothing."""
    return found[0] if len({value for value, _ in found}) == 1 else (None, -1)


def _values(reply: str, keys: Sequence[str]) -> Iterator[tuple[int, int, Any]]:
    """(start, end, value) for every value of one of the keys in the JSON objects of a text, nested ones included."""
    decoder = json.JSONDecoder(object_pairs_hook=tuple)  # a tuple of pairs keeps a repeated key
    start = reply.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(reply, start)
        except (json.JSONDecodeError, RecursionError):
            end = start + 1
        else:
            for found in _members(value, keys):
                yield start, end, found
        start = reply.find("{", end)


def _members(value: Any, keys: Sequence[str]) -> Iterator[Any]:
    if isinstance(value, tuple):
        for key, member in value:
            if key in keys:
                yield member
            else:
                yield from _members(member, keys)
