"""Answers in words, letters of a multiple choice, and what is said where there is no solution."""

from __future__ import annotations

import re

from .finding import SAME, Finding
from .notation import compact, unwrapped

NOTHING = re.compile(
    r"(?:there\s+(?:is|are)\s+)?no(?:ne|\s+(?:real\s+|integer\s+|such\s+)?(?:solutions?|values?|numbers?|roots?)(?:\s+exists?)?)|"
    r"\\emptyset|\\\{\s*\\\}|empty\s*set|no\s*real\s*solutions?",
    re.IGNORECASE,
)
_LIMITS = frozenset(
    re.findall(
        r"\w+",
        """
        not no never cannot less more fewer than minus plus times over under or and if unless until mod modulo remainder
        percent half twice double triple third quarter between except about least most before after hundred thousand
        million billion dozen base without at squared cubed negative below loss deficit debt neither nor instead
        false untrue wrong incorrect doubt unlikely impossible
        """,
    )
)
"""Words that make another number of the one they stand by."""

MADE_FROM = re.compile(
    r"\b(?:half|twice|double|triple|thirds?|quarters?|fifths?|tenths?|squared?|cubed?|root|power|reciprocal|inverse"
    r"|opposite|negative|minus|factorial|logarithm|multiples?|divisors?|factors?|complement)\s+(?:of\s+)?(?:the\s+)?$",
    re.IGNORECASE,
)
"""What before a number makes another one of it: `half of 4`, `the square of 4`."""

TIMES_ZERO = re.compile(
    r"(?<![A-Za-z\\])[A-Za-z]{2,}|(?<![\d.])0(?:\.0*)?(?![\d.]).*(?<![A-Za-z\\])[A-Za-df-hj-z](?![A-Za-z])"
)
"""Words, or a zero with letters behind it: what a computer makes 0 of, and no reader."""

_SYNONYMS = {
    "doesnotexist": "dne",
    "infinitelymanysolutions": "infinitelymany",
    "undefined": "undefined",
    "infinity": r"\infty",
    "+\\infty": r"\infty",
}
ALL_REAL = {"allrealnumbers", "allreals", "r", r"\mathbb{r}", r"(-\infty,\infty)", "realnumbers", "anyrealnumber"}
_FUNCTIONS = re.compile(
    r"\\(?:frac|sqrt|pi|sin|cos|tan|cot|sec|csc|log|ln|exp|binom|infty|sum|prod|int|times|cdot|div|circ|arcsin|arccos|"
    r"arctan|alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|sigma|pm|mp|lfloor|rfloor|lceil|rceil|min|max|gcd|pmod|bmod)"
    r"(?![A-Za-z])"
)


_NO_CHOICE = re.compile(
    r"(?:or|and|nor|but|not)\W+(?:option|choice)?\W*[A-J](?![A-Za-z])|(?:is|was)\s+(?:not|wrong|incorrect|false|ruled)\b",
    re.IGNORECASE,
)
"""What behind a letter takes it back, or names another one."""


_SAID_CHOICE = re.compile(
    r"(?:[A-Za-z][a-z]*(?:'(?:s|m|d|ll|re))?[ ,:]*){1,8}?"
    r"(?:\b(?:is|be|choose|pick|select|option|choice|answer|letter)\b|'s)[\s:]*\*{0,2}\(?([A-J])\)?\*{0,2}|\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|answer)(?:\s+(?:answer|choice|option))?"
)
"""A sentence that says the letter it chooses: `I think it's (D)`, `So it is option C`, `B is correct`."""

_TAKES_BACK = re.compile(
    r"\b(?:not|never|nor|neither|or|either|over|than|except|but|unless|if|false|wrong|incorrect|cannot)\b|n't\b",
    re.IGNORECASE,
)


def choice(left: str, gold: str) -> Finding | None:
    """Letters of a multiple choice, with or without brackets and with what they stand for."""
    plain = [unwrapped(text).strip() for text in (left, gold)]
    asked = re.fullmatch(r"(\()?\s*([A-J])\s*(\))?", plain[1])
    if asked is None:
        asked = re.match(r"(\()\s*([A-J])\s*(\))\s+\S", plain[1])
    if asked is None:
        return None
    bare = re.fullmatch(r"\(?\s*(?:option|choice)?\s*\(?([A-J])\)?\s*\)?", plain[0], re.IGNORECASE)
    if bare and (bare[1].isupper() or asked[1]):
        return SAME if bare[1].upper() == asked[2] else Finding("wrong", "another letter")
    if (said := _SAID_CHOICE.fullmatch(plain[0])) and not _TAKES_BACK.search(plain[0]):
        return SAME if (said[1] or said[2]) == asked[2] else Finding("wrong", "another letter")
    longer = re.match(r"(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:])\s*(?=[\w$\\])", plain[0])
    if longer:
        if _NO_CHOICE.match(plain[0], longer.end()):
            return Finding("wrong", "no letter, or several")
        return SAME if (longer[1] or longer[2]) == asked[2] else Finding("wrong", "another letter")
    return None


def told_number(text: str) -> str | None:
    """The number in a sentence that has no other and that says no more of it: `Natalia sold 72 clips`."""
    plain = unwrapped(text)
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", plain))
    numbers = re.findall(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", plain)
    if (
        len(numbers) != 1
        or len(words) < 3
        or re.search(r"n['’]t\b", plain)
        or MADE_FROM.search(plain[: plain.find(numbers[0])])
        or _LIMITS & {word.lower() for word in words}
        or re.search(r"[\\^_=/%]", plain)
    ):
        return None
    return numbers[0]


_ARTICLE = re.compile(
    r"^(?:(?:it|this|that)(?:\s+(?:is|was)|'s)\s+)?(?:on\s+)?(?:(?:the|an?)\s+)?(?=\w{3})", re.IGNORECASE
)
"""What stands before a word and says nothing of it."""


def words_of(text: str) -> str | None:
    """The words of an answer that is no expression, without case and spaces; None for an expression."""
    plain = unwrapped(text)
    bare = re.sub(r"\\[A-Za-z]+", " ", plain)
    if _FUNCTIONS.search(plain) and not re.search(r"[A-Za-z]{3,}\s+[A-Za-z]{2,}", bare):
        return None
    runs = re.findall(r"[A-Za-z]+", bare)
    known = {
        "pi",
        "sqrt",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "frac",
        "infty",
        "inf",
        "mathbb",
        "emptyset",
    }
    plain = plain.strip()
    says = any(len(run) > 2 and run.lower() not in known for run in runs)
    if says or NOTHING.fullmatch(plain) or plain.casefold() == "no":
        # An article goes before the spaces go: `a cyclic` is not `acyclic`.
        return re.sub(r"[\s\-_.,'\"!]+", "", _ARTICLE.sub("", plain)).casefold()
    return None


def same_words(found: str, right: str, words: list[str | None]) -> Finding:
    left, gold = (
        word if word is not None else compact(text).casefold() for word, text in zip(words, (found, right), strict=True)
    )
    left, gold = (_SYNONYMS.get(text, text) for text in (left, gold))
    if left == gold:
        return SAME
    if all(NOTHING.fullmatch(unwrapped(text).strip()) for text in (found, right)):
        return SAME
    if left in ALL_REAL and gold in ALL_REAL:
        return SAME
    return Finding("wrong", "different words" if None not in words else "words and an expression")
