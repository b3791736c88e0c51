"""Where in a completion its final answer stands.

What comes before the last `</think>` does not count, and a completion whose `<think>` is never closed has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from .notation import closing_brace
from .words import MADE_FROM

Form = Literal["boxed", "answer", "hashes", "short", "conclusion", "number"]
"""Where an answer may stand: in the last `\\boxed{}`; behind "the answer is"; after `####` (as in GSM8K); anywhere in a
text of one line, which is an answer itself or ends in one; in a last sentence that begins with "therefore" or the like;
as the last number of the text."""

ANY: tuple[Form, ...] = ("boxed", "answer", "hashes", "short", "conclusion")
"""Where an answer is looked for if no task says where it has to stand."""

SHORT = 400
"""Characters of a text of one line that is no reasoning, only an answer."""

_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{|\\framebox\s*\{|\\boxed\s*(?=[0-9A-Za-z\\-])")
_BETWEEN = re.compile(
    r"(?:[\s$,;.&()\[\]\\]|\\(?:quad|qquad|text\{)|[})]|\b(?:and|or)\b|(?<![A-Za-z])[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)
_AND = re.compile(r"\s*(?:,|;|,?\s*(?:and|or)\s)\s*")
_WORDS_AND = re.compile(r"[^.!?\n=]{0,40}\b(?:and|or)[\s$(){}\\]*")
_JOINED = re.compile(r",|;|\b(?:and|or)\b")
_SAID = re.compile(
    r"\b(?:answers?|(?:correct|right|best)\s+(?:choice|option))\b(?:[^.\n=:]{0,80}?(?:\bis\b|\bare\b|:|=)\s*:?(?:\s*\*\*)?\s*|\s*(?=\$|\\\[|\\\())"
    r"(?!\s*(?:indeed\s+)?(?:correct|incorrect|reasonable|consistent|verified|confirmed)\b)",
    re.IGNORECASE,
)
_CHECKS = re.compile(
    r"\b(?:check|verify|confirm)(?:ing)?\s+(?:our|the|my|this|that|your)\s+(?:final\s+)?$", re.IGNORECASE
)
"""What stands before "answer" where it is looked at once more, and not given."""

_DOUBTED = re.compile(
    r"(?:\b(?:false|untrue|wrong|incorrect|doubt|unlikely|deny|not|never|half|twice|double|triple)|n't)\b[^.,;:!?\n]{0,40}$",
    re.IGNORECASE,
)
"""What stands before "the answer is ..." where that is not said."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|[+-]?\.[0-9]+")
_MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)", re.DOTALL)
_TURN = re.compile(r"<\|(?:im_start|im_end|eot_id|endoftext|end|user|assistant)\|>")
_CONCLUDES = re.compile(
    r"(?:^|[.!?$)\]:]\s+|\n\s*)(therefore|thus|hence|so|consequently|in conclusion|in total|altogether|finally)\b",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|than|instead\s+of)|n't)\b[^.,;:\d]{0,12}$|\bor\s+$"
    r"|\b(?:false|untrue|wrong|incorrect|doubt|unlikely)\b[^.,;:\d]{0,40}$"
    r"|\b(?:half|twice|double|triple)\s+(?:of\s+)?(?:the|that|this|it|what)\b[^.,;:\d]{0,40}$"
    r"|(?:[<>]|\bmod(?:ulo)?)\s*$|\bbetween\s+[^.,;:]{1,12}\s+and\s+$",
    re.IGNORECASE,
)
"""What stands before a number that is denied."""

_DENIED = re.compile(r"\b(?:not|wrong|incorrect)\b|n't\b")
_QUANTITY = re.compile(
    r"(?<![A-Za-z0-9])[$€£]?[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?(?:\s+\d+/\d+)?(?:\s*(?:%|percent))?"
)
_CHAINS = (
    re.compile(r"[({\[<][^(){}\[\]<>]*[,;]\s*$"),  # `(3, 4)`
    re.compile(
        r"\d[\d.,]*(?:(?:\s+[A-Za-z]+){0,2}(?:\s*,)?\s+(?:and|or)|\s+(?:to|out\s+of))\s+(?:[A-Za-z]\s*=\s*)?$"
    ),  # `2 hours and 30`
    re.compile(r"\d[\d.]*\s*,\s*$|\d+\s*:\s*$"),
    re.compile(r"(?:[\w.()^{}\\]+\s*(?:[-+/^_×·]|(?<!\*)\*(?!\*))\s*)+$"),  # `x^2 + 1`
)
"""What stands before a number that is only the last part of an answer."""

_BEHIND = re.compile(
    r"(?:[A-Za-z°²³^!]|\*(?!\*))\S*(?<![.,])|\s*(?:tens|hundred|thousand|million|billion|trillion|dozen|lakh|crore|hal(?:f|ves)|third|fourth"
    r"|quarter|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?\b"
)
"""What makes another number of the one it stands behind, or may."""

_HOPE = re.compile(r"\.?\s*I hope\b.*", re.DOTALL)


class Found(NamedTuple):
    """An answer as it stands in a text, and where it ends there."""

    text: str
    end: int


def final_answer(completion: str, forms: Sequence[Form] = ("boxed",)) -> str | None:
    """The answer a completion ends in, or None.

    The first form that is found counts; of `boxed`, `hashes` and `answer`, where the latter is
    allowed, the one that stands last.
    """
    text = answering(completion)
    if text is None:
        return None
    if "answer" in forms:
        marked = [_FORMS[form](text) for form in ("boxed", "hashes", "answer") if form in forms]
        last = max((found for found in marked if found and found.text), key=lambda found: found.end, default=None)
        if last is not None:
            return last.text
    for form in forms:
        found = _FORMS[form](text)
        if found is not None and found.text:
            return found.text
    return None


def answering(completion: str) -> str | None:
    """What a completion says after it thought; None where it thinks to its end."""
    _, closed, text = completion.rpartition("</think>")
    if not closed and "<think>" in completion:
        return None
    # What follows the end of a turn is another one's.
    return (
        None
        if "<think>" in text
        else _TURN.split(text.lstrip() if text.lstrip().startswith("<|") else text, maxsplit=1)[0]
    )


def boxed(text: str) -> str | None:
    """Content of the last complete, non-empty `\\boxed{...}`, braces balanced; or None.

    Boxes that only "and", "or" or a comma stands between are one answer: `\\boxed{1} and \\boxed{-2}` is `1, -2`.
    """
    found = _boxed(text)
    return found.text if found else None


def _boxed(text: str) -> Found | None:
    boxes: list[tuple[int, int, str]] = []
    for match in reversed(list(_BOX.finditer(text))):
        content, end = _content(text, match)
        if not content:
            continue
        if boxes:
            between = text[end : boxes[-1][0]]
            if end > boxes[-1][0]:  # around the one that is there
                continue
            if len(between) >= 60 or not _joins(between):
                break
        boxes.append((match.start(), end, content))
    if not boxes:
        return None
    contents = list(dict.fromkeys(content for *_, content in reversed(boxes)))
    return Found(", ".join(contents), boxes[0][1])


def _joins(between: str) -> bool:
    """Whether what stands between two boxes makes one answer of them: nothing, a comma, "and", or "... and"."""
    if _BETWEEN.fullmatch(between):
        return bool(_JOINED.search(between)) or not between.strip(" $")
    return _WORDS_AND.fullmatch(between) is not None


def _content(text: str, match: re.Match[str]) -> tuple[str, int]:
    """What stands in a box, and where it ends; "" for one that is empty or never closed."""
    if not match[0].endswith("{"):  # `\boxed 5`
        bare = re.compile(r"\\?[A-Za-z]+(?:\{[^{}]*\})*|-?[0-9][0-9.,/]*").match(text, match.end())
        return (bare[0].rstrip(".,"), bare.end()) if bare else ("", match.end())
    end = closing_brace(text, match.end())
    return ("", match.end()) if end is None else (text[match.end() : end].strip(), end + 1)


def _said(text: str) -> Found | None:
    """Behind the last "the answer is"."""
    last = None
    for match in _SAID.finditer(text):
        before = text[max(match.start() - 60, 0) : match.start()]
        last = last if _CHECKS.search(before) or _DOUBTED.search(before) else match
    if last is None:
        return None
    math = _MATH.match(text, last.end())
    line = _HOPE.sub("", text[last.end() :].lstrip().split("\n")[0])
    if (
        math
        and len(re.findall(r"[A-Za-z]{2,}", _MATH.sub(" ", line))) < 3
        and _JOINED.search(_MATH.sub(" ", line)) is None
    ):
        rest = re.match(r"\s*(?:\\?%|percent\b)", text[math.end() :])
        return Found(math[0] + (rest[0] if rest else ""), last.end())
    line = re.split(r"(?<=[\w)}$\]*`\"])\.(?:\s+[A-Z*]|\s*$)", line)[0].strip().strip('*"').strip()
    return Found(_of_sentence(line), last.end()) if line else None


def _hashes(text: str) -> Found | None:
    if "####" not in text:
        return None
    before, _, after = text.rpartition("####")
    return Found(after.strip().split("\n")[0].strip(), len(before))


def _short(text: str) -> Found | None:
    text = text.strip()
    # A formula may be set in several lines.
    lines = "\n" not in text or len(_words(re.sub(r"\\[A-Za-z]+(?:\{[a-z*]+\})?", " ", text))) < 3
    if not text or len(text) > SHORT or not lines:
        return None
    return Found(_of_sentence(text, is_sentence=_CONCLUDES.match(text) is not None), len(text))


def _conclusion(text: str) -> Found | None:
    """Of a text that ends in a whole sentence beginning with "therefore" or the like, what that sentence says."""
    text = _HOPE.sub("", text).rstrip().rstrip(".")
    last = None
    for match in _CONCLUDES.finditer(text):
        last = match
    if last is None or len(text) - last.start() > SHORT or re.search(r"[.!?]\s+[A-Z]", text[last.end() :]):
        return None
    return Found(_of_sentence(text[last.start(1) :], is_sentence=True), len(text))


def _of_sentence(line: str, *, is_sentence: bool = False) -> str:
    """The answer in a line: all of it, unless it is a sentence; then its last formula or its last number."""
    spans = list(_MATH.finditer(line))
    if spans:
        if len(_words(line[: spans[0].start()])) < 1:
            return line
        first = len(spans) - 1
        while first and _AND.fullmatch(line[spans[first - 1].end() : spans[first].start()]):
            first -= 1
        after = _NUMBER.search(line, spans[-1].end())
        if after:
            return _last_number(line)
        percent = re.match(r"\s*(?:\\?%|percent\b)", line[spans[-1].end() :])
        return line[spans[first].start() : spans[-1].end()] + (percent[0] if percent else "")
    told = re.match(r"[^\d\\]*", line)
    says = told is not None and len(_words(told[0])) > 1 and told.end() < len(line)
    if not (is_sentence or says) and len(_words(re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+", " ", line))) < 4:
        return line
    return _last_number(line)


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[A-Za-z]{2,}", text) if word.lower() not in ("and", "or")]


def _last_number(text: str) -> str:
    """The last number with what belongs to it: a fraction, a currency, a unit of one word, other members of a list.

    What is said not to be the answer, or to lie beside it, is none: the whole text is judged then.
    """
    found = list(_QUANTITY.finditer(text))
    if not found:
        return text
    before, after = text[: found[-1].start()], text[found[-1].end() :]
    if _TAKEN_BACK.search(before) or MADE_FROM.search(before) or _DENIED.search(after):
        return text
    begin = next((chain.start() for pattern in _CHAINS if (chain := pattern.search(before))), None)
    behind = _BEHIND.match(after)
    if begin is not None:
        return text[begin:].strip().rstrip(".")
    return (found[-1][0] + (behind[0] if behind else "")).strip().rstrip(",")


def _number(text: str) -> Found | None:
    numbers = _NUMBER.findall(text)
    return Found(numbers[-1], len(text)) if numbers else None


_FORMS: dict[Form, Callable[[str], Found | None]] = {
    "boxed": _boxed,
    "answer": _said,
    "hashes": _hashes,
    "short": _short,
    "conclusion": _conclusion,
    "number": _number,
}
