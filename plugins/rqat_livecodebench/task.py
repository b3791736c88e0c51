"""LiveCodeBench: problems with tests from the user's own copy, and what a program is worth that a model wrote."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import pickletools
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import rqat

from . import NO_SANDBOX, LiveCodeBenchOptions
from .program import program_of
from .sandbox import run, try_out

FIELDS = ("question_content", "public_test_cases", "private_test_cases")

LARGEST = 1 << 30
"""Bytes that the hidden tests of one problem may unpack to."""

TEXTS = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
AROUND = frozenset({"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"})
"""Operations that a pickle of a text is made of: of the text, and around it."""

_BLOCK = re.compile(r"^```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)


class LiveCodeBench(rqat.Task):
    """Contest problems of "LiveCodeBench" (arXiv 2403.07974): a program is right if it passes every test.

    The wording of the prompt is ours, so that figures here are compared with one another.
    """

    options: LiveCodeBenchOptions

    def problems(self) -> Sequence[rqat.Row]:
        """See `rqat.Task`; the sandbox is tried out first.

        Raises:
            RqatError: there is no sandbox, or it does not do what one has to.
        """
        path = self._path()
        try_out(self._sandbox())
        rows = [self._row(place, record) for place, record in _records(path) if self._wanted(place, record)]
        if not rows:
            raise rqat.DataError(
                f"'{self.options.data}' holds no problems{self._window()}.", hint="Check data, since and until."
            )
        return rows

    def grade(self, completion: str, answer: str, row: rqat.Row) -> rqat.Verdict:
        """See `rqat.Task`. A program that ended the sandbox, or came to no end in it, is `unverifiable`.

        Raises:
            RqatError: there is no sandbox, or it failed.
        """
        sandbox = self._sandbox()
        code = program_in(completion)
        if code is None:
            return "wrong"
        asked: Any = row
        try:
            tests = [*tests_of(asked["public_tests"]), *tests_of(asked["hidden_tests"])]
            name = asked["function"]
        except KeyError as error:
            raise rqat.DataError(
                f"{row.get('place', 'a row')}: there are no tests to run.", hint="Use problems of livecodebench."
            ) from error
        program = program_of(code, tests, name, test_s=self.options.test_s, program_s=self.options.program_s)
        return run(sandbox, program, self.options.program_s)

    def _sandbox(self) -> str:
        if self.options.sandbox is None:
            raise rqat.RqatError(NO_SANDBOX.text, hint=NO_SANDBOX.hint)
        return self.options.sandbox

    def _window(self) -> str:
        since, until = self.options.since, self.options.until
        return "".join(f" {word} {day}" for word, day in (("since", since), ("until", until)) if day)

    def _wanted(self, place: str, record: Any) -> bool:
        since, until = self.options.since, self.options.until
        if not (since or until):
            return True
        day = str(record.get("contest_date", ""))[:10] if isinstance(record, dict) else ""
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", day):
            raise rqat.DataError(f"{place}: a problem without 'contest_date'.", hint="Leave since and until out.")
        return (since or day) <= day <= (until or day)

    def _row(self, place: str, record: Any) -> rqat.Row:
        try:
            question, public, hidden = (record[name] for name in FIELDS)
            starter = str(record.get("starter_code") or "")
            about = json.loads(record.get("metadata") or "{}")
            function = str(about.get("func_name") or "") if isinstance(about, dict) else ""
            if not all(isinstance(each, str) for each in (question, public, hidden)):
                raise TypeError
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            fields = ", ".join(f"'{name}'" for name in FIELDS)
            raise rqat.DataError(f"{place}: a problem needs the fields {fields}.", hint="Check `data`.") from error
        for text in (question, starter):
            rqat.refuse_half_pairs(text, lambda: place)
        parts = [question.strip()]
        if starter.strip():
            parts.append(f"The program has to complete this:\n\n```python\n{starter.rstrip()}\n```")
        else:
            parts.append("The program reads from standard input and writes to standard output.")
        if self.options.instruction:
            parts.append(self.options.instruction)
        row: Any = {
            "prompt": "\n\n".join(parts),
            # Who was asked the same was also held to the same tests.
            "answer": f"tests {hashlib.sha256(repr((public, hidden)).encode()).hexdigest()[:16]}",
            "place": place,
            "public_tests": public,
            "hidden_tests": hidden,
            "function": function if starter.strip() else "",
        }
        found: rqat.Row = row
        return found

    def _path(self) -> Path:
        if self.options.data is None:
            raise rqat.DataError(
                "'livecodebench' has no problems: rqat brings none.",
                hint="Give your copy of livecodebench/code_generation_lite with --data: a .jsonl file, or its folder.",
            )
        return self.options.data.path


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """What a file, or every file of a folder, holds; see `_lines`."""
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")]) if path.is_dir() else [path]
    for file in files:
        yield from _lines(file)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """What the lines of a file hold, each behind its place.

    Raises:
        DataError: it cannot be read, or a line is no JSON.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", rqat.parse_json(line)
    except UnicodeDecodeError as error:
        raise rqat.DataError(f"'{path}' cannot be read: {error}.", hint="Check `data`.") from error
    except (ValueError, RecursionError) as error:
        raise rqat.DataError(f"{path}:{number}: not JSON: {error}.", hint="Write one object per line.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise rqat.DataError(
            f"'{path}' cannot be read: {' '.join(str(error).split())}.", hint="Check `data`."
        ) from error


def program_in(completion: str) -> str | None:
    """The program of a completion: its last block of code behind the thinking; None where there is none."""
    if "<think>" in completion and "</think>" not in completion:
        return None
    blocks: list[str] = _BLOCK.findall(completion.rpartition("</think>")[2])
    return blocks[-1] if blocks and blocks[-1].strip() else None


def tests_of(text: str) -> list[dict[str, str]]:
    """Tests, each with `input`, `output` and `testtype`: JSON, or JSON that was pickled, deflated and put into base64.

    Of the pickle only a text is taken, which is read from it: nothing is unpickled.

    Raises:
        DataError: they are neither.
    """
    try:
        try:
            found = json.loads(text)
        except ValueError:
            found = json.loads(_unpacked(text))
        return [{key: str(test[key]) for key in ("input", "output", "testtype")} for test in found]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise rqat.DataError(
            f"Tests that cannot be read: {text[:40]!r} ...", hint="Fetch the problems again."
        ) from error


def _unpacked(text: str) -> str:
    try:
        packed = base64.b64decode(text.encode(), validate=True)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed, LARGEST)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from error
    if unpacker.unconsumed_tail:
        raise ValueError(f"more than {LARGEST:,} bytes")
    return _pickled_text(data)


def _pickled_text(data: bytes) -> str:
    """The one text of a pickle, as its operations hold it; none of them is carried out.

    Raises:
        ValueError: it is no pickle, or one of something else.
    """
    found: list[str] = []
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in TEXTS:
            found.append(str(argument))
        elif operation.name not in AROUND:
            raise ValueError(f"a pickle with {operation.name}")
    if len(found) != 1:
        raise ValueError(f"{len(found)} texts")
    return found[0]
