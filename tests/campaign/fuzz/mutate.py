"""Mutations of texts, bytes and JSON, each decided by its seed alone."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**64), 1e308, -0.0, 0.5, float("nan"), float("inf")),
    *("", " ", "\0", "\ud800", "\u2028", "\x1b[2J", "../../etc/passwd", "/", ".", "a" * 5000, "é", "0", "1e5", "nan"),
    *("{{ 1/0 }}", "{% for", "<script>", "null", "w2g64", "auto", "float16", "mamba", "llama", "quickstart"),
    *([], {}, [[]], [None], {"": None}, [0] * 1000, {"a": {"a": {"a": {}}}}),
)
"""Values that a reader may not expect."""

SCRAPS = (
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\r", b"\xed\xa0\x80", b"\\ud800", b"NaN", b"[" * 3000, b'{"a":' * 2000),
    *(b"&a [*a]", b"<<: *x", b"!!python/object:os.system x", b": :", b"\t", b"9" * 5000, b"1e999", b"\x80\x04."),
    *(b"'", b'"'),
)


def mutated_json(text: str, rng: random.Random) -> bytes:
    """JSON with some values replaced, removed, renamed or moved; now and then broken as text."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _changed(value, rng)
    written = json.dumps(value).encode()
    return mutated_bytes(written, rng) if rng.random() < 0.2 else written


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with pieces flipped, cut, doubled or put in."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(6)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] = rng.randrange(256)
        elif kind == 1:
            del found[at : at + rng.choice((1, 4, 40, 4000))]
        elif kind == 2:
            found[at:at] = found[max(0, at - rng.choice((1, 8, 80))) : at]
        elif kind == 3:
            found[at:at] = rng.choice(SCRAPS)
        elif kind == 4:
            del found[at:]
        elif found:
            other = rng.randrange(len(found))
            found[at : at + 8], found[other : other + 8] = found[other : other + 8], found[at : at + 8]
    return bytes(found)


def mutated_lines(text: str, rng: random.Random) -> bytes:
    """JSON lines, one of which is changed."""
    lines: list[bytes] = [line.encode() for line in text.splitlines()]
    at = rng.randrange(len(lines))
    lines[at] = mutated_json(lines[at].decode(), rng) if rng.random() < 0.8 else mutated_bytes(lines[at], rng)
    return rng.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines)


def mutated_text(text: str, rng: random.Random) -> bytes:
    """A text of lines (YAML, a template): words of one line replaced by odd values, else bytes changed."""
    if rng.random() < 0.4:
        return mutated_bytes(text.encode(), rng)
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    key, mark, _ = lines[at].partition(":")
    odd = json.dumps(rng.choice(ODD))
    lines[at] = rng.choice(
        (f"{key}{mark} {odd}", f"{odd}{mark} x", f"{lines[at]}\n{lines[at]}", f"{lines[at]} {odd}", "")
    )
    return "\n".join(lines).encode()


def mutated_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, its length right or wrong, or other bytes."""
    if rng.random() < 0.3:
        return mutated_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header = mutated_json(data[8 : 8 + length].decode(), rng)
    told = len(header) if rng.random() < 0.8 else rng.choice((0, 1, 2**40, 2**63, len(header) + 7))
    return struct.pack("<Q", told) + header + data[8 + length :]


def _changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one change somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        kind = rng.randrange(8)
        rest = {name: inner for name, inner in value.items() if name != key}
        if kind == 0:
            return rest
        if kind == 1:
            return rest | {str(rng.choice(ODD)): value[key]}
        if kind == 2:
            return value | {key: rng.choice(ODD)}
        return value | {key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.randrange(4)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


Mutate = Callable[[Any, random.Random], bytes]
