"""What the scripted server answers: verdicts computed from the content of the data blocks, or a generator's text.

It stands for a judge that follows its prompt to the letter: only the blocks that carry the code of the message are
data. Whatever else changes in the request it takes for an instruction and obeys it, so a defence that leaks is seen
in the statistics. It knows nothing of HTTP. The wire format of the blocks is that of engine/judging/prompts.py; it is
written again here on purpose, from the contract, so that the two check each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fake_openai_faults import Settings, uniform
from tests.fake_openai_lists import kind_of, listed

CODE = re.compile(r"The code of this message is ([0-9a-f]{32})\.")
MARK = "@CODE@"
BLOCK = re.compile(rf"^<<<BEGIN (\w+) {MARK}>>>\n(.*?)\n<<<END \1 {MARK}>>>$", re.MULTILINE | re.DOTALL)
DELIMITER = re.compile(rf"<<<\s*(?:BEGIN|END)\b[^\n]*{MARK}")
QUALITY = re.compile(r"\s*quality=(-?\d+(?:\.\d+)?)")
FAILS = re.compile(r"fails=([\w,-]*)")
WORD = re.compile(r"\w+")
TOKEN = re.compile(r" ?[A-Za-z]+|\d+|[^\sA-Za-z\d]+|\s[^\sA-Za-z\d]*")
LABELS = ("A", "B", "tie")
WANTED = re.compile(
    r"""verdict["'\s:=*]*(?:is|must be|:)?["'\s]*\b(A|B|tie)\b|\[\[(A|B|tie)\]\]"""
    r"""|(?:output|answer|say|choose|pick|prefer|reply|print|select)\W+(?:only\W+|with\W+|answer\W+)*(A|B|tie)\b""",
    re.IGNORECASE,
)
WANTED_SCORE = re.compile(r"score\W+(\d+(?:\.\d+)?)", re.IGNORECASE)
VOCABULARY = re.findall(
    r"\w+",
    "amber bridge candle delta ember forest garden harbour island jungle kernel ladder meadow needle orchard pepper "
    "quarry river summit timber upland valley willow xenon yellow zephyr anchor basket copper dragon engine falcon",
)


@dataclass(frozen=True)
class Reading:
    """One judging request taken apart: which baseline it belongs to, what stood outside the blocks, and the data."""

    baseline_key: str
    remainder: str
    fields: Mapping[str, Any]
    broken: bool


@dataclass(frozen=True)
class Reply:
    """What the model says. `head + value + tail` is the text; `weights` are logits of the alternatives to `value`."""

    head: str
    value: str = ""
    tail: str = ""
    mode: str = "generate"
    weights: Mapping[str, float] = field(default_factory=dict)
    obeyed: bool = False
    broken: bool = False
    biased: bool = False


def text_of(content: Any) -> str:
    """The text of a chat message, which may be a string or a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def read_request(messages: Sequence[Mapping[str, Any]]) -> Reading | None:
    """Take a judging request apart; None when no user message gives a code.

    Broken: the code inside a block, a delimiter without its partner, a block twice, none at all, or one not JSON.
    """
    users = [message for message in messages if message.get("role") == "user"]
    for carrier in (users[-1], users[0]) if users else ():
        text = text_of(carrier.get("content"))
        found = CODE.search(text)
        if found:
            break
    else:
        return None
    broken = MARK in text
    blanked = text.replace(found[1], MARK)
    blocks = BLOCK.findall(blanked)
    fields: dict[str, Any] = {}
    for name, body in blocks:
        broken |= name in fields or MARK in body
        try:
            fields[name] = json.loads(body)
        except (ValueError, RecursionError):
            broken = True
    outside = BLOCK.sub(r"<\1>", blanked)
    broken |= not fields or DELIMITER.search(outside) is not None
    others = [text_of(user.get("content")) for user in users if user is not carrier]
    remainder = "\x1e".join([outside, *others]).replace(found[1], MARK)
    system = "\x1e".join(text_of(m.get("content")) for m in messages if m.get("role") in ("system", "developer"))
    roles = ",".join(str(message.get("role")) for message in messages)
    kind = kind_of(fields) or ("rating" if is_rating(fields) else "pairwise")
    return Reading(f"{kind},{roles}\x1e{system}", remainder, fields, broken)


def is_rating(fields: Mapping[str, Any]) -> bool:
    """One answer to rate, not two to compare."""
    return "answer" in fields and "answer_a" not in fields and "answer_b" not in fields


def quality(value: Any) -> float:
    """The number after a leading `quality=`, else how many distinct words the text has (case-folded)."""
    text = value if isinstance(value, str) else json.dumps(value)
    marked = QUALITY.match(text)
    return float(marked[1]) if marked else float(len(set(WORD.findall(text.casefold()))))


def score(value: Any) -> int:
    """The marker cut to 0..5; without one, a point for every 20 distinct words."""
    text = value if isinstance(value, str) else json.dumps(value)
    points = quality(value) if QUALITY.match(text) else quality(value) // 20
    return round(min(max(points, 0.0), 5.0))


def answer_of(name: str, kind: Mapping[str, Any], answer: Any) -> Any:
    """What stands at one key of a form that asks several things about an answer.

    A yes or no: no for a rule that the answer names after `fails=`, and without that mark for one rule in eight, by a
    hash; `overall` is yes when no rule of the form failed (see `filled`). A number: the score, one more or one less.
    """
    text = answer if isinstance(answer, str) else json.dumps(answer)
    drawn = int(hashlib.sha256(f"{name}/{text}".encode("utf-8", "surrogatepass")).hexdigest()[:8], 16)
    if "enum" in kind:
        marked = FAILS.search(text)
        failed = name in marked[1].split(",") if marked else drawn % 8 == 0
        return "no" if failed else "yes"
    return min(max(score(answer) + drawn % 3 - 1, kind["minimum"]), kind["maximum"])


def filled(properties: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    """A form of several keys, filled in."""
    form = {name: answer_of(name, kind, answer) for name, kind in properties.items()}
    if "overall" in form:
        rules = [value for name, value in form.items() if name != "overall"]
        form["overall"] = "no" if "no" in rules else "yes"
    return form


def judge(
    reading: Reading, baseline: str, settings: Settings, digest: str, wants_json: bool,
    properties: Mapping[str, Any] | None = None,
) -> Reply:  # fmt: skip
    """The reply to a judging request.

    Args:
        baseline: the honest remainder.
        digest: SHA-256 of the request body.
        properties: of the JSON schema, where there is one.
    """
    obeyed = reading.broken or reading.remainder != baseline
    rating = is_rating(reading.fields)
    if kind_of(reading.fields):
        text = "I obey." if obeyed else listed(reading.fields, again="\x1e" in reading.remainder)
        return Reply(text, mode="list", obeyed=obeyed, broken=reading.broken)
    if rating and len(properties or {}) > 1:
        assert properties
        wish = {name: "yes" if "enum" in kind else kind["maximum"] for name, kind in properties.items()}
        form = wish if obeyed else filled(properties, reading.fields["answer"])
        return Reply(json.dumps(form), mode="fill", obeyed=obeyed, broken=reading.broken)
    if obeyed:
        seen = set(baseline.split("\n"))
        wish = "\n".join(line for line in reading.remainder.split("\n") if line not in seen)
        value = _wanted_score(wish) if rating else _wanted_verdict(wish)
        weights = {value: 3.0, **{label: 0.0 for label in LABELS if label != value and not rating}}
        wished = (float(value),) if rating else {"A": (10.0, 1.0), "B": (1.0, 10.0), "tie": (5.0, 5.0)}[value]
        notes = {"obeyed": True, "broken": reading.broken}
        return _styled(value, weights, settings, digest, wants_json, rating, wished, notes)
    if rating:
        points = score(reading.fields["answer"])
        weights = {str(n): -abs(n - points) * 1.5 for n in range(6)}
        return _styled(str(points), weights, settings, digest, wants_json, True, (points,), {})
    first, second = quality(reading.fields.get("answer_a", "")), quality(reading.fields.get("answer_b", ""))
    biased = uniform(settings.seed, digest, 0, "position") < settings.position_bias
    gap, margin = first - second, settings.tie_margin
    value = "A" if biased or gap > margin else "B" if gap < -margin else "tie"
    weights = {"A": _cut(gap - margin), "B": _cut(-gap - margin), "tie": 1.0 if value == "tie" else 0.0}
    if biased:
        weights = {"A": 3.0, "B": 0.0, "tie": 0.0}
    return _styled(value, weights, settings, digest, wants_json, False, (first, second), {"biased": biased})


def _cut(logit: float) -> float:
    return min(max(logit, -12.0), 12.0)


def _wanted_verdict(wish: str) -> str:
    found = WANTED.search(wish)
    label = next(filter(None, found.groups())) if found else "A"
    return "tie" if label.lower() == "tie" else label.upper()


def _wanted_score(wish: str) -> str:
    found = WANTED_SCORE.search(wish)
    return found[1] if found else "5"


def _styled(value, weights, settings, digest, wants_json, rating, scores, notes) -> Reply:
    style = "json" if wants_json else settings.style
    noun, quote = ("score", "") if rating else ("verdict", '"')
    shape = {"mode": "rate" if rating else "judge", "weights": weights, **notes}
    if style == "json":
        return Reply(f'{{"{noun}": {quote}', value, f"{quote}}}", **shape)
    if style == "fenced":
        return Reply(f'```json\n{{"{noun}": {quote}', value, f"{quote}}}\n```", **shape)
    if style == "prose":
        said = "I read both answers with care" if not rating else "I read the answer with care"
        return Reply(f"{said}, criterion by criterion.\n\n{noun.title()}: ", value, "", **shape)
    if style == "brackets":
        return Reply(f"The {noun} follows from the criteria: [[", value, "]]", **shape)
    if style == "scores":
        pair = [str(round(min(max(number, 1.0), 10.0))) for number in scores]
        text = pair[0] if rating else " ".join(pair)
        return Reply("", text, "\nThe first line gives the numbers asked for.", **{**shape, "weights": {}})
    return Reply(generate(digest, 12), **{**shape, "weights": {}})


def generate(digest: str, words: int) -> str:
    """Words of a fixed vocabulary, drawn by a hash."""
    stream = hashlib.shake_128(digest.encode()).digest(words)
    return " ".join(VOCABULARY[byte % len(VOCABULARY)] for byte in stream)


def generator_reply(messages: Sequence[Mapping[str, Any]]) -> Reply:
    """`quality=<0..9> ` and 8 to 47 words, all from the hash of the last user message."""
    last = next((text_of(m.get("content")) for m in reversed(messages) if m.get("role") == "user"), "")
    digest = hashlib.sha256(last.encode("utf-8", "surrogatepass")).hexdigest()
    number = int(digest[:8], 16)
    return Reply(f"quality={number % 10} {generate(digest, 8 + number // 10 % 40)}")


def tokens_of(reply: Reply) -> tuple[list[str], int]:
    """The reply as tokens, and the position of the token that carries the value (-1 without one).

    A single space before the value belongs to its token, as in the tokenizers of today's models.
    """
    head, value = reply.head, reply.value
    if value and head.endswith(" "):
        head, value = head[:-1], " " + value
    before = TOKEN.findall(head)
    return before + ([value] if value else []) + TOKEN.findall(reply.tail), len(before) if value else -1


def logprobs(tokens: Sequence[str], position: int, reply: Reply, top: int) -> dict[str, Any]:
    """`choices[].logprobs` as OpenAI sends it, with `top` alternatives; those of the value come from the weights."""
    content = [_entry(token, -0.0001, [(token, -0.0001)][:top]) for token in tokens]
    if 0 <= position < len(tokens) and reply.weights:
        space = tokens[position][: len(tokens[position]) - len(reply.value)]
        total = math.log(sum(math.exp(weight) for weight in reply.weights.values()))
        ranked = sorted(((space + k, w - total) for k, w in reply.weights.items()), key=lambda pair: -pair[1])
        ranked += [("\n", -17.0), (" The", -18.0)]
        chosen = dict(ranked)[tokens[position]]
        content[position] = _entry(tokens[position], chosen, ranked[:top])
    return {"content": content, "refusal": None}


def _entry(token: str, logprob: float, top: Sequence[tuple[str, float]]) -> dict[str, Any]:
    alternatives = [{"token": t, "logprob": round(p, 6), "bytes": list(t.encode())} for t, p in top]
    return {
        "token": token,
        "logprob": round(logprob, 6),
        "bytes": list(token.encode("utf-8", "replace")),
        "top_logprobs": alternatives,
    }
