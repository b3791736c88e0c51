"""The process that asks math-verify whether two answers are equal; `grade.py` starts it and kills it when it hangs.

Run as a script: reads one JSON object per line (`{"gold", "answer", "seconds"}`) and writes one word per line. It
imports nothing of rqat, so that starting it again after a kill is cheap. Simplifying an answer like `9^{9^{9^9}}` can
take for ever inside C code, where no exception reaches; so the alarm keeps its default action, which ends the process.
"""

import json
import signal
import sys

MEMORY_BYTES = 4 << 30
"""Address space of this process; an expression that needs more ends it, and counts as unverifiable."""


def limit_memory() -> None:
    """Bounds this process, where the system knows how to."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, OSError, ValueError):
        pass


def compare(gold: str, answer: str) -> str:
    """`correct`, `wrong` or `unverifiable`; an answer that is no mathematics at all is wrong."""
    from math_verify import parse, verify

    # Without math-verify's own timers: they are exceptions raised by signals, which long integer arithmetic never sees.
    targets = [parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer)]
    if not targets[0]:
        return "unverifiable"
    return "correct" if verify(*targets, timeout_seconds=None, raise_on_error=True) else "wrong"


def main() -> None:
    """Answers questions until standard input closes."""
    import logging

    logging.disable(logging.CRITICAL)
    limit_memory()
    import math_verify  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, question["seconds"])
        try:
            verdict = compare(question["gold"], question["answer"])
        except Exception:
            verdict = "unverifiable"
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(verdict, flush=True)


if __name__ == "__main__":
    main()
