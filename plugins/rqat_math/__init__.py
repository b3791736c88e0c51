"""Reasoning tasks with answers that can be checked: `math500`, `gsm8k`, `aime120` and `gpqa-diamond`."""

from __future__ import annotations

import rqat

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""Put after every problem, as Quantized-Reasoning-Models (arXiv 2504.04823) does and the card of R1 asks for."""

CHOOSE = "Please reason step by step, and put the letter of your choice within \\boxed{}."
"""The same for multiple choice."""


class MathOptions(rqat.TaskOptions):
    """Options of `math500`, `gsm8k` and `aime120`; the defaults are the protocol of arXiv 2504.04823.

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


class GpqaOptions(MathOptions):
    """Options of `gpqa-diamond`.

    Attributes:
        data: the questions, `.csv` or `.jsonl`, with the authors' columns; without it the file under `$RQAT_DATA`.
        shuffle: seed of the order of the choices.
    """

    instruction: str = CHOOSE
    shuffle: int = 0


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
        longest_prompt=835,  # with Qwen2.5's tokenizer and template; the median is 95
    )
    register(
        "gsm8k",
        options=MathOptions,
        load=".tasks:Gsm8k",
        summary="1,319 grade-school word problems, graded by their number",
        paper="2110.14168",
        domain="math",
    )
    register(
        "aime120",
        options=MathOptions,
        load=".tasks:Aime120",
        summary="AIME I and II of 2022 to 2025, from a file of yours",
        domain="math",
    )
    register(
        "gpqa-diamond",
        options=GpqaOptions,
        load=".gpqa:Gpqa",
        summary="198 questions of experts, multiple choice, from a file of yours",
        paper="2311.12022",
        domain="science",
    )
