"""Mathematical reasoning tasks with answers that can be checked: `math500` and `gsm8k`."""

from __future__ import annotations

import rqat

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""Put after every problem, as Quantized-Reasoning-Models (arXiv 2504.04823) does and the card of R1 asks for."""


class MathOptions(rqat.TaskOptions):
    """Options of `math500` and `gsm8k`; the defaults are the protocol of arXiv 2504.04823.

    Attributes:
        data: the problems, a `.jsonl` or `.jsonl.gz` file; without it the file under `$RQAT_DATA`, else the hub.
        instruction: put after every problem; empty for none.
        timeout_s: seconds that comparing one answer may take.
    """

    max_new_tokens: int = 32_768
    temperature: float = 0.6
    top_p: float = 0.95
    seeds: tuple[int, ...] = (42, 43, 44)
    instruction: str = INSTRUCTION
    timeout_s: float = 5.0


@rqat.hookimpl
def register_tasks(register: rqat.RegisterTask) -> None:
    """The cards of the tasks."""
    register(
        "math500",
        options=MathOptions,
        load=".tasks:Math500",
        summary="500 competition problems, graded by math-verify",
        paper="2305.20050",
        domain="math",
    )
    register(
        "gsm8k",
        options=MathOptions,
        load=".tasks:Gsm8k",
        summary="1,319 grade-school word problems, graded by their number",
        paper="2110.14168",
        domain="math",
    )
