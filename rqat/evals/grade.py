"""Whether a completion ends in the right answer: `grade(completion, answer)`.

What is judged is the last `\\boxed{...}` after `</think>`. Most answers (integers, words, equal spellings) are decided
by comparing strings; what remains goes to math-verify in a process of its own (`checker.py`), which is killed when it
takes too long: then the verdict is `unverifiable`, counted by itself and never as correct.

Conventions, for cases on which graders differ:
    units, degrees, `$`  left out when only one side has them (`5.4 \\text{ cents}` equals `5.4`)
    percent              `50\\%` equals both `50` and `0.5`
    number bases         `7602_8` differs from `7602_9` (math-verify alone ignores the base); `7602` without a base
                         equals `7602_8`, because the problem fixes the base
    no boxed answer      wrong, unless `forms` admits others
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..contracts import Verdict

Form = Literal["boxed", "hashes", "number"]
"""Where an answer may stand: in the last `\\boxed{}`, after `####` (as in GSM8K), or as the last number of the text."""

START_SECONDS = 120.0
"""How long the checker may take to import math-verify; tens of seconds on a cold disk."""

_UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "∪": r"\cup ",
        "∈": r"\in ",
    }
    | {
        "≤": r"\le ",
        "≥": r"\ge ",
        "±": r"\pm ",
        "²": "^2",
        "³": "^3",
        "½": r"\frac{1}{2}",
        "\u00a0": " ",
        "％": "%",
        "，": ",",
    }
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)
# Not after a backslash: `\\ ` ends the row of a matrix.
_SPACES = re.compile(
    r"(?<!\\)\\[!,;:> ]|~|(?<!\\)\\(?:displaystyle|left|right|bigl|bigr|big|quad|qquad|mathrm|limits)(?![A-Za-z])"
)
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boxed|operatorname)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[0-9}])\s*\\(?:text|textrm|mathrm|mbox)\s*\{\s*[A-Za-z][A-Za-z. ]*\}(?:\^\{?[23]\}?)?$")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|[+-]?\.[0-9]+")
_BASED = re.compile(r"([0-9A-Z]+)_\{?([0-9]+|[a-z]+)\}?")
_BASE_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_BASE_NAMES = {word: base for base, word in enumerate(_BASE_WORDS, start=2)} | {"sixteen": 16}


def grade(completion: str, answer: str, *, timeout_s: float = 5.0, forms: Sequence[Form] = ("boxed",)) -> Verdict:
    """Judges the final answer of a completion.

    Args:
        completion: what the model wrote.
        answer: the right answer, LaTeX or plain.
        timeout_s: seconds that comparing may take.
        forms: where the answer may stand; the first form that is found counts.
    """
    found = final_answer(completion, forms)
    return "wrong" if found is None else same_answer(found, answer, timeout_s=timeout_s)


def final_answer(completion: str, forms: Sequence[Form] = ("boxed",)) -> str | None:
    """The answer a completion ends in, or None. What stands before the last `</think>` does not count."""
    text = completion.rpartition("</think>")[2]
    for form in forms:
        if form == "boxed":
            found = boxed(text)
        elif form == "hashes":
            found = text.rpartition("####")[2].strip().split("\n")[0] if "####" in text else None
        else:
            numbers = _NUMBER.findall(text)
            found = numbers[-1] if numbers else None
        if found:
            return found
    return None


def boxed(text: str) -> str | None:
    """Content of the last complete, non-empty `\\boxed{...}` or `\\fbox{...}`, braces balanced; or None."""
    for match in reversed(list(re.finditer(r"\\f?boxed\s*\{|\\fbox\s*\{", text))):
        end = _closing_brace(text, match.end())
        if end is not None and (content := text[match.end() : end].strip()):
            return content
    return None


def same_answer(found: str, answer: str, *, timeout_s: float = 5.0) -> Verdict:
    """Whether two final answers are equal; `answer` is the right one. See the module for conventions."""
    return _quick_verdict(found, answer) or _CHECKER.ask(*_without_percent(_clean(answer), _clean(found)), timeout_s)


def _closing_brace(text: str, start: int) -> int | None:
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


def _clean(text: str) -> str:
    """One spelling for what only looks different: spaces, sizes of brackets and fractions, currency, degrees."""
    text = text.translate(_UNICODE).replace(r"\$", "").replace("$", "").replace(r"\(", "").replace(r"\)", "")
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|\\text\s*\{\s*degrees?\s*\}", "", text)
    text = re.sub(r"\\(?:text|mbox)\s*\{\s*(?:and|or)\s*\}", ",", text)
    text = _SPACES.sub(" ", text).strip().rstrip(".").strip()
    compact = text.replace(" ", "")
    if _THOUSANDS.fullmatch(compact):
        return compact.replace(",", "")
    return text


def _without_percent(answer: str, found: str) -> tuple[str, str]:
    """Both answers as math-verify understands them: a percent sign on one side only divides by 100."""
    plain = [re.sub(r"\s*\\?%$", "", text) for text in (answer, found)]
    if (plain[0] == answer) == (plain[1] == found):
        return plain[0], plain[1]
    ratio = [
        text if text == before else f"\\frac{{{text}}}{{100}}"
        for text, before in zip(plain, (answer, found), strict=True)
    ]
    return ratio[0], ratio[1]


def _spelling(text: str) -> str:
    """The cleaned text without wrappers of words, spaces and unit; equal spellings are equal answers."""
    text = _clean(text)
    without_unit = _UNIT.sub("", text)
    while (inner := _WRAPPER.sub(r"\1", without_unit)) != without_unit:
        without_unit = inner
    text = re.sub(r"\s+|\\%|%", "", without_unit)
    if re.fullmatch(r"\(?[A-Z]\)", text):
        text = text.strip("()")
    return re.sub(r"^[a-z](?:=|\\in)", "", text)


def _quick_verdict(found: str, answer: str) -> Verdict | None:
    """The verdict, where strings are enough for it."""
    left, right = _spelling(found), _spelling(answer)
    if not left:
        return "wrong"
    if _INTEGER.fullmatch(left) and _INTEGER.fullmatch(right) and ("%" in found) == ("%" in answer):
        return "correct" if _plain_integer(left) == _plain_integer(right) else "wrong"
    if left == right:
        return "correct"
    if _based(left) or _based(right):
        return "correct" if _same_in_base(left, right) else "wrong"
    if min(len(left), len(right)) > 1 and left.isalpha() and right.isalpha():
        return "correct" if left.casefold() == right.casefold() else "wrong"
    return None


def _plain_integer(text: str) -> str:
    # As text: `int` refuses more than 4300 digits and is slow long before.
    digits = text.lstrip("+-").lstrip("0") or "0"
    return f"-{digits}" if text.startswith("-") and digits != "0" else digits


def _based(text: str) -> tuple[str, int] | None:
    """`(digits, base)` of a number written with its base, such as `4210_{5}`."""
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    base = int(match[2][:3]) if match[2].isdigit() else _BASE_NAMES.get(match[2], 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in match[1]):
        return None
    return match[1].lstrip("0") or "0", base


def _same_in_base(found: str, answer: str) -> bool:
    left, right = _based(found), _based(answer)
    if left and right:
        return left == right
    if right:
        return (found.lstrip("0") or "0") == right[0]
    return left is not None and left[1] == 10 and left[0] == (answer.lstrip("0") or "0")


class _Checker:
    """A persistent `checker.py`, started when first asked and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, gold: str, answer: str, timeout_s: float) -> Verdict:
        """Compares two answers; `unverifiable` when the process dies or is late."""
        question = json.dumps({"gold": gold, "answer": answer, "seconds": timeout_s}) + "\n"
        with self._lock:
            process = self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(question.encode())
                process.stdin.flush()
                # The process ends itself at `timeout_s`; the second more is for one that cannot.
                verdict = self._line(process, timeout_s + 1)
            except BrokenPipeError:
                verdict = ""
            except BaseException:
                # Interrupted between question and answer: the next question must not read this answer.
                self.stop()
                raise
            if verdict in ("correct", "wrong", "unverifiable"):
                return verdict  # type: ignore[return-value]
            self.stop()
            return "unverifiable"

    def stop(self) -> None:
        """Ends the process; a forked child leaves its parent's alone."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self.stop()
        # -P: the script's folder must not shadow modules that math-verify imports.
        command = [sys.executable, "-P", str(Path(__file__).with_name("checker.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._owner = os.getpid()
        if self._line(self._process, START_SECONDS) != "ready":
            self.stop()
            raise RuntimeError(f"the answer checker did not start: {' '.join(command)}")
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], timeout_s: float) -> str:
        """The next line of output; empty when none comes in time."""
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        text = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not text.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return ""
                piece = os.read(process.stdout.fileno(), 4096)
                if not piece:
                    return ""
                text += piece
        return text.decode().strip()


_CHECKER = _Checker()
atexit.register(_CHECKER.stop)
