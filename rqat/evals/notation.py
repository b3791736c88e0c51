"""One spelling for what only looks different: Unicode, spacing, sizes of brackets, fonts, shorthand of fractions.

`cleaned` keeps what an answer says and drops how it is set. Some signs become one character each, so that the rest of
the grader looks for that character only: `°` a degree, `%` percent, `¤` a dollar, `±` plus-minus.
"""

from __future__ import annotations

import re
import unicodedata

DOLLAR = "¤"

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_FRACTIONS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅖": "2/5",
    "⅗": "3/5",
    "⅘": "4/5",
}
_FRACTIONS |= {
    "⅙": "1/6",
    "⅚": "5/6",
    "⅐": "1/7",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
    "⅑": "1/9",
    "⅒": "1/10",
}
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
        (
            *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
            *("nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
            *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"),
        ),
        strict=True,
    )
)
_SIGNS = str.maketrans(
    dict.fromkeys("−–—‐‑‒﹣－", "-")
    | {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/"}
    | {"∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}"}
    | {"≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∖": r"\setminus "}
    | {"⟨": r"\langle ", "⟩": r"\rangle ", "º": "°", "˚": "°", "℃": "°C", "℉": "°F", "′": "'"}
    | {"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2062": "", "\u2061": "", "\u200b": "", "\ufeff": ""}
    | {sign: "\\frac{{{}}}{{{}}}".format(*value.split("/")) for sign, value in _FRACTIONS.items()}
    | {sign: f"\\{name} " for sign, name in _GREEK.items()}
)
_WORD_FONTS = r"\\(?:mathrm|textbf|textit|textrm|textsf|texttt|textnormal|mathsf|mathtt|mbox|hbox|operatorname\*?|emph)"
_FUNCTIONS = "arcsinh|arccosh|arctanh|arsinh|arcosh|artanh|gcd|lcm|max|min|det|sinh|cosh|tanh|exp|sgn"
_SWITCHES = re.compile(
    r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|bf|it|rm|sf|bfseries|itshape)"
    r"(?![A-Za-z])"
)
_LETTER_FONTS = re.compile(
    r"\\(?:mathbf|mathit|mathnormal|boldsymbol|bm|vec|overrightarrow|mathcal|hat)\s*\{([^{}]*)\}"
)
_GAPS = re.compile(
    r"(?<!\\)\\[,;:> ]|(?<!\\)~|\\(?:quad|qquad|displaystyle|textstyle|limits|hfill|thinspace|enspace)"
    r"(?![A-Za-z])"
)
_SIZES = re.compile(r"\\(?:left|right)\.|\\(?:left|right|[bB]igg?[lrm]?|mleft|mright|middle)(?![A-Za-z])")
_POINTS_BY_THOUSANDS = re.compile(r"(?<![\w.,])\d{1,3}(?:(?:\.\d{3}){2,}(?:,\d+)?|(?:\.\d{3})+,\d{1,2})(?![\w.,])")
"""`1.234.567` and `1.500,00`, which cannot be read otherwise."""

_CONJUGATE = re.compile(r"\\overline\s*\{((?=[^{}]*\d)[\d\s.+-]*i[\d\s.+-]*)\}")

_PREFIX = re.compile(
    r"^(?:(?:so|thus|hence|therefore|and)\b[,:]?\s*)?(?:the\s+)?(?:(?:final|correct|right|required)\s+)?"
    r"(?:answer|result|solution|value)s?\s*(?:is|are|=|:)\s*:?\s*",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"^(?:the\s+)?(?:[A-Za-z]+(?:\s+[a-z]+){0,4}\s+(?:is|are)\s*:?|[A-Za-z]{3,}(?:\s+[a-z]+){0,3}\s*:)\s*(?=[-+\d\\$(\[¤.*])",
    re.IGNORECASE,
)
"""`the maximum value is 5` and `Total: 5` say 5."""

_OTHER = re.compile(
    r"\b(?:not?|never|doubt|false|untrue|wrong|incorrect|unlikely|half|twice|double|triple|than|without|minus|plus|times)\b",
    re.IGNORECASE,
)
"""Words in such a beginning with which it says something else."""

_ABOUT = re.compile(
    r"^(?:approximately|about|roughly|exactly|around|nearly|therefore|thus|hence|then|simply|just|\\(?:approx|sim|simeq|doteq)(?![A-Za-z])|=)\s*"
)
_OUTER = re.compile(r"^(?:\\boxed|\\fbox|\\framebox|\\text|\\underline|\\ensuremath)\s*\{")


def cleaned(text: str) -> str:
    """An answer in one spelling; what it says is unchanged."""
    text = _ascii(text)
    text = _latex(_dollars(text))
    before = None
    while before != text:
        before = text
        text = _stripped(text)
    return text


def closing_brace(text: str, start: int) -> int | None:
    """Where the group that was opened before `start` is closed; None where it never is."""
    depth, position = 1, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def balanced(text: str) -> bool:
    """Whether every brace that is opened is closed, and the other way round."""
    depth = 0
    for character in re.sub(r"\\.", "", text, flags=re.DOTALL):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def unwrapped(text: str) -> str:
    """Words without the `\\text{}` around them."""
    before = None
    while before != text:
        before = text
        text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    return text


def compact(text: str) -> str:
    """Without spaces, and without braces that change nothing: what equal strings are told by."""
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_", unwrapped(text).strip())  # `1 1/2` is not `11/2`
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"(?<=[\^_])\{([A-Za-z0-9])\}", r"\1", text)
    return text.replace(r"\cdot", "*").replace(r"\times", "*")


def _ascii(text: str) -> str:
    text = re.sub(f"[{_SUPERSCRIPTS}]+", lambda found: f"^{{{_plain(found[0], _SUPERSCRIPTS)}}}", text)
    text = re.sub(f"[{_SUBSCRIPTS}]+", lambda found: f"_{{{_plain(found[0], _SUBSCRIPTS)}}}", text)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))", lambda f: f"\\sqrt{{{f[1] or f[2]}}}", text)
    text = text.translate(_SIGNS)
    # The rest: full-width forms, letters of mathematical alphabets, digits of other scripts.
    text = unicodedata.normalize("NFKC", text) if not text.isascii() else text
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


def _plain(signs: str, table: str) -> str:
    return "".join("0123456789+-"[table.index(sign)] for sign in signs)


def _dollars(text: str) -> str:
    """Takes off the signs of mathematics; a dollar of money becomes `¤`."""
    text = text.replace(r"\$", DOLLAR)
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    if text.count("$") % 2:  # one of them is no pair: money
        text = text.replace("$", DOLLAR, 1)
    return text.replace("$", " ")


def _latex(text: str) -> str:
    text = re.sub(r"(?<=\d)\s*(?:,|\{\s*,\s*\})\s*\\!\s*(?=\d{3})", ",", text)
    text = re.sub(r"\{\s*,\s*\}\s*", ",", text).replace(r"\!", "")
    if not re.search(r"\\begin|matrix|cases", text):
        text = re.sub(r"\\\\(?=[A-Za-z{}%])", r"\\", text)
    text = re.sub(rf"\\(?:operatorname\*?|mathrm|text)\s*\{{\s*({_FUNCTIONS})\s*\}}(?=\s*[({{\\^])", r"\\\1", text)
    text = re.sub(r"\\(?:operatorname|text)\s*\{\s*floor\s*\}\s*\(([^()]*)\)", r"\\lfloor \1\\rfloor ", text)
    text = re.sub(r"\\(?:operatorname|text)\s*\{\s*ceil\s*\}\s*\(([^()]*)\)", r"\\lceil \1\\rceil ", text)
    text = re.sub(rf"{_WORD_FONTS}(?![A-Za-z])\s*\{{", r"\\text{", text)
    text = re.sub(r"\{\s*\\(?:rm|bf|it)\s+([^{}]*)\}|\\rm\s*\{([^{}]*)\}", r"\\text{\1\2}", text)
    text = _SWITCHES.sub(" ", text)
    text = _LETTER_FONTS.sub(r"{\1}", text)
    text = re.sub(r"\\color\s*\{[^{}]*\}|\\textcolor\s*\{[^{}]*\}(?=\s*\{)", "", text)
    text = re.sub(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)(?![A-Za-z]))", _primes, text)
    text = _GAPS.sub(" ", _SIZES.sub(" ", text))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\[dt]binom", r"\\binom", text)
    text = re.sub(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}", text)
    text = re.sub(r"\\overline\s*\{\s*([A-Z]{2,})\s*\}", r"\1", text)
    text = re.sub(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\[[^\[\]]*\])?\s*([0-9A-Za-z])", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\\log\s*_\s*(?:e(?![A-Za-z])|\{\s*e\s*\})", r"\\ln ", text)
    text = re.sub(r"\\lg(?![A-Za-z])", r"\\log_{10}", re.sub(r"\\colon(?![A-Za-z])", ":", text))
    text = re.sub(r"(\\\{\s*[A-Za-z](?:\s*\\in\s*\\mathbb\s*\{[A-Z]\})?)\s*[:|]", r"\1 \\mid ", text)
    text = re.sub(
        r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}(\^\{?\d\}?)?\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}(\^\{?\d\}?)?\s*\}",
        r"\\text{\1}\2/\\text{\3}\4",
        text,
    )
    text = re.sub(r"(?:\{\s*\})?_\s*\{?(\d+)\}?\s*C\s*_\s*\{?(\d+)\}?", r"\\binom{\1}{\2}", text)
    text = re.sub(
        r"(?:\{\s*\})?_\s*\{?(\d+)\}?\s*P\s*_\s*\{?(\d+)\}?",
        r"\\frac{\1!}{(\1-\2)!}",
        _CONJUGATE.sub(_conjugated, text),
    )
    text = _POINTS_BY_THOUSANDS.sub(lambda found: found[0].replace(".", "_").replace(",", ".").replace("_", ","), text)
    text = re.sub(r"\\(?:leq|leqslant|leqq)(?![A-Za-z])", r"\\le ", text)
    text = re.sub(r"\\(?:geq|geqslant|geqq)(?![A-Za-z])", r"\\ge ", text)
    text = re.sub(r"\\lt(?![A-Za-z])", "<", re.sub(r"\\gt(?![A-Za-z])", ">", text))
    text = (
        re.sub(r"\\(?:neq|not\s*=)", r"\\ne ", text)
        .replace("!=", r"\ne ")
        .replace("<=", r"\le ")
        .replace(">=", r"\ge ")
    )
    text = re.sub(r"\\(?:lbrace)(?![A-Za-z])", r"\\{", re.sub(r"\\rbrace(?![A-Za-z])", r"\\}", text))
    text = re.sub(r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset ", text)
    text = re.sub(r"\\pm(?![A-Za-z])|\+/-|\+-", "±", text)
    text = re.sub(
        r"\^\s*(?:\{\s*(?:\\circ|\\degree|°)\s*\}|\\circ(?![A-Za-z])|\\degree(?![A-Za-z])|°)"
        r"|\\degree(?![A-Za-z])|\\textdegree(?![A-Za-z])",
        "°",
        text,
    )
    text = re.sub(r"\\text\s*\{\s*degrees?\s*\}|(?<=[\d} ])degrees?\b", "°", text)
    text = re.sub(r"\b([ap])\.\s?m\b\.?", lambda found: found[1].upper() + "M", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r"(?<![\\A-Za-z])(log|ln|exp|sin|cos|tan)(?=\s*\()", r"\\\1", text)
    text = re.sub(r"(?<![\w'])\d{1,3}(?:(?:'|_)\d{3})+(?![\w'])", lambda found: re.sub("['_]", ",", found[0]), text)
    text = re.sub(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])(?:infinity|inf)(?![A-Za-z])", r"\\infty ", text, flags=re.IGNORECASE)
    text = re.sub(
        r"(?<=\d)\s*(?:\^\s*\{\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}|\^?\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\})|(?<=\d)(?:st|nd|rd|th)\b",
        "",
        text,
    )
    text = re.sub(r"\^\s*-\s*(\d+|[A-Za-z])", r"^{-\1}", text)
    text = re.sub(r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\\overline{\1\2\3}", text)
    text = re.sub(r"\\pmod\s*\{?\s*(\d+)\s*\}?", r"\\pmod{\1}", re.sub(r"\\equiv(?![A-Za-z])", "=", text))
    text = re.sub(r"\\%", "%", text)
    text = re.sub(
        r"\\text\s*\{\s*(?:percent|percentage|pct|%)\.?\s*\}|(?<=[\d} ])(?:percentage|percent|pct)\b", "%", text
    )
    text = re.sub(r"\\(?:textdollar|usd)(?![A-Za-z])", DOLLAR, text)
    return re.sub(r"(?<=[\w)}])\*\*(?=[\w({-])", "^", text)


def _conjugated(found: re.Match[str]) -> str:
    """`\\overline{3+4i}` as `(3+4(-i))`."""
    return "(" + found[1].replace("i", "(-i)") + ")"


def _primes(found: re.Match[str]) -> str:
    """`f^{\\prime\\prime}` as `f''`."""
    return "'" * (found[1] or found[2]).count("prime")


def _stripped(text: str) -> str:
    """Without what stands around an answer."""
    text = text.strip().strip("`").strip()
    text = re.sub(r'^\\?"|\\?"$|\\$', "", text).strip()
    text = re.sub(r"^'([^']+)'$", r"\1", text)
    for mark in ("**", "__", "*"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    text = re.sub(r"(?<!\.)\.$|[,;:]$", "", text).rstrip()
    text = _PREFIX.sub("", text)
    named = _NAMED.match(text)
    text = _ABOUT.sub("", text[named.end() :] if named and not _OTHER.search(named[0]) else text)
    text = re.sub(r"^(?:minus|negative)\s+(?=[\d.\\¤])", "-", text, flags=re.IGNORECASE)
    found = re.match(r"\\text\s*\{([^{}]*)\}\s*(?=\S)", text)
    if found and (_PREFIX.fullmatch(found[1].strip() + " ") or _ABOUT.fullmatch(found[1].strip())):
        text = text[found.end() :]
    opened = _OUTER.match(text)
    if opened and closing_brace(text, opened.end()) == len(text) - 1:
        return text[opened.end() : -1]
    if text.startswith("{") and closing_brace(text, 1) == len(text) - 1:
        return text[1:-1]
    return text
