"""The program that a sandbox gets: it runs a model's program on every test, and its exit code says how that went.

It needs nothing but Python 3.8. The model's program runs in a process of its own, which does not see what is expected:
it can end as it likes, and passes only by what it prints. What it prints goes to a file of bounded size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

PASSED, FAILED = 0, 99
"""Exit codes; no sandbox that fails by itself ends with the second."""

PREAMBLE = """\
import bisect, collections, functools, heapq, itertools, json, math, operator, random, re, string, sys
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, cmp_to_key, lru_cache, reduce
from heapq import heapify, heappop, heappush
from itertools import accumulate, combinations, permutations, product
from math import ceil, comb, factorial, floor, gcd, inf, isqrt, log, sqrt
from typing import *
sys.setrecursionlimit(50_000)
"""
"""What contest sites import for a solution."""

CALL = """

if __name__ == "__main__":
    _given = [json.loads(line) for line in sys.stdin.read().split("\\n") if line.strip()]
    _out, sys.stdout = sys.stdout, sys.stderr
    _found = getattr(Solution(), {name!r})(*_given)
    _out.write(json.dumps(_found))
    _out.flush()
"""
"""Put behind a solution that is a class: arguments from lines of JSON, the result as JSON."""

HARNESS = '''\
import json, os, resource, shutil, signal, subprocess, sys, tempfile, threading
from decimal import Decimal, InvalidOperation

GIVEN = json.loads({given!r})
PASSED, FAILED = {passed}, {failed}
LARGEST = 1 << 26


def numbers(line):
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None


def same_text(found, wanted):
    mine, theirs = ([line.strip() for line in text.strip().split("\\n")] for text in (found, wanted))
    if len(mine) != len(theirs):
        return False
    return all(a == b or (numbers(a) is not None and numbers(a) == numbers(b)) for a, b in zip(mine, theirs))


def same_value(found, wanted):
    try:
        return json.loads(found) == json.loads(wanted)
    except ValueError:
        return False


def limits():
    os.setsid()
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end(code):
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


def output(test):
    """What the program prints; None if it fails or takes too long."""
    with open(os.path.join(folder, "in"), "w") as file:
        file.write(test["input"])
    with open(os.path.join(folder, "in")) as given, open(os.path.join(folder, "out"), "w") as printed:
        process = subprocess.Popen([sys.executable, "-I", solution], stdin=given, stdout=printed,
                                   stderr=subprocess.DEVNULL, cwd=folder, preexec_fn=limits)
    try:
        code = process.wait(timeout=GIVEN["test_s"])
    except subprocess.TimeoutExpired:
        code = None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass
    process.wait()
    if code != 0:
        return None
    with open(os.path.join(folder, "out"), errors="replace") as file:
        return file.read(LARGEST)


folder = tempfile.mkdtemp()
solution = os.path.join(folder, "solution.py")
with open(solution, "w") as file:
    file.write(GIVEN["code"])
late = threading.Timer(GIVEN["program_s"], end, [FAILED])
late.daemon = True
late.start()
try:
    for test in GIVEN["tests"]:
        found = output(test)
        same = same_value if test["testtype"] == "functional" else same_text
        if found is None or not same(found, test["output"]):
            end(FAILED)
except Exception:  # a program may remove its own folder, or take all memory
    end(FAILED)
end(PASSED)
'''


def program_of(
    code: str, tests: Sequence[Mapping[str, str]], function: str = "", *, test_s: float, program_s: float
) -> str:
    """A whole program whose exit code is `PASSED` where `code` passes every test, and else `FAILED`.

    Args:
        code: of the model.
        tests: with `input`, `output`, and `testtype`: "stdin" or "functional".
        function: method of the class `Solution` that is called; "" is a program that reads and prints.
        test_s: seconds that one test may take.
        program_s: seconds that all may take.
    """
    whole = f"{PREAMBLE}\n{code}\n{CALL.format(name=function) if function else ''}"
    given = {"code": whole, "tests": [dict(test) for test in tests], "test_s": test_s, "program_s": program_s}
    return HARNESS.format(given=json.dumps(given), passed=PASSED, failed=FAILED)
