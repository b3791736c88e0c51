"""Compiles kernels for GPUs that are not there, and reads their machine code.

    TRITON_INTERPRET=0 python tests/kernels/static/sass.py [CASE ...]

prints a line per case and capability. Triton's package carries the whole tool chain, so this runs on any machine.
`test_static.py` runs the same in a child process (the tests themselves have Triton's interpreter switched on) and holds
every case to its gates. Cases of an operation stand in `static/<operation>.py`, in a list `CASES`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CAPABILITIES = (80, 90)

MATRIX = ("HMMA", "HGMMA", "IMMA", "IGMMA", "QGMMA")
SPILLS = ("LDL", "STL")


@dataclass(frozen=True)
class Case:
    """One kernel, compiled with one set of arguments, and what its machine code must be.

    Attributes:
        name: unique; "<operation>-<variant>".
        kernel: `module:function` of the jitted function, so that cases can be listed without importing Triton.
        signature: type of every argument that is not a constexpr: "*bf16", "*fp32", "*u8", "i32", "fp32", ...
        constexprs: value of every constexpr argument.
        unaligned: integer arguments not known to be multiples of 16; pointers and all others are.
        warps, stages, options: as the launcher chooses them; `options` are more of Triton's compile options.
        elements: of what it works on (weights, logits), per program and turn of its innermost loop; None: not counted.
        capabilities: which GPUs it is compiled for.
        spills: instructions that touch local memory allowed; 0 unless there is a reason.
        matrix: "any" needs matrix instructions, "HGMMA" those of Hopper (on capability 90), None does not care.
        per_element: most issued instructions per element in the innermost loop, by capability.
        wide: least share of global loads that are 16 bytes wide.
        registers: most registers per thread.
    """

    name: str
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    unaligned: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    elements: int | None = None
    capabilities: tuple[int, ...] = CAPABILITIES
    spills: int = 0
    matrix: str | None = None
    per_element: Mapping[int, float] = field(default_factory=dict)
    wide: float | None = None
    registers: int = 255


def listing(case: Case, capability: int) -> str:
    """The disassembled machine code of a case."""
    return _compiled(case, capability).asm["sass"]  # type: ignore[no-any-return]


def facts(case: Case, capability: int) -> dict[str, Any]:
    """What the gates are about: registers, counts of instructions, and the innermost loop's share.

    Returns:
        registers: per thread. shared_bytes: per program. instructions: in all. spills: that touch local memory.
        matrix: matrix instructions by mnemonic. loads: global loads by width in bytes. loop: instructions in the
        longest loop without another loop in it (0: none). per_element: issue slots per element, counting one for each
        thread: `loop * warps * 32 / elements` (the whole kernel, when there is no loop).
    """
    compiled = _compiled(case, capability)
    code = compiled.asm["sass"]
    lines = [line for line in code.splitlines() if re.search(r"[A-Z]", line)]
    instructions = [name for line in lines if (name := _mnemonic(line))]
    # What stands behind the last EXIT is the filler that branches to itself.
    heads = Counter(name.split(".")[0] for name in instructions)
    loads: Counter[int] = Counter()
    for name in instructions:
        if name.startswith(("LDG", "LDGSTS")):
            width = re.search(r"\.(128|64|U16|S16|U8|S8)\b", name)
            loads[{"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[width[1]] if width else 4] += 1
    loop = _innermost_loop(lines)
    body = loop or sum(1 for name in instructions if name != "NOP")
    return {
        "registers": _registers(compiled, code),
        "shared_bytes": compiled.metadata.shared,
        "instructions": len(instructions) - heads["NOP"],
        "spills": sum(heads[name] for name in SPILLS),
        "matrix": {name: heads[name] for name in MATRIX if heads[name]},
        "loads": dict(sorted(loads.items())),
        "loop": loop,
        "per_element": round(body * case.warps * 32 / case.elements, 3) if case.elements else None,
    }


def broken_gates(case: Case, capability: int, found: Mapping[str, Any]) -> list[str]:
    """What a case promises and its machine code does not keep, as readable lines."""
    broken = []
    if found["spills"] > case.spills:
        broken.append(f"{found['spills']} instructions touch local memory, {case.spills} allowed")
    if found["registers"] > case.registers:
        broken.append(f"{found['registers']} registers, {case.registers} allowed")
    wanted = case.matrix
    if wanted and (wanted == "any" or capability < 90):
        if not found["matrix"]:
            broken.append("no matrix instructions")
    elif wanted and wanted not in found["matrix"]:
        broken.append(f"no {wanted}, only {found['matrix']}")
    limit = case.per_element.get(capability)
    if limit is not None and found["per_element"] > limit:
        broken.append(f"{found['per_element']} instructions per element, {limit} allowed")
    if case.wide is not None:
        wide = found["loads"].get(16, 0) / max(1, sum(found["loads"].values()))
        if wide < case.wide:
            broken.append(
                f"{wide:.0%} of the global loads are 16 bytes wide, {case.wide:.0%} asked for: {found['loads']}"
            )
    return broken


def all_cases() -> list[Case]:
    """Every case of every operation."""
    return [case for path in sorted(HERE.glob("*.py")) if path.stem != "sass" for case in _module(path.stem).CASES]


def _module(stem: str) -> Any:
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    sys.modules.setdefault("sass", sys.modules[__name__])
    return importlib.import_module(stem)


_done: dict[tuple[str, int], Any] = {}


def _compiled(case: Case, capability: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    key = (case.name, capability)
    if key not in _done:
        module, _, function = case.kernel.partition(":")
        kernel = getattr(importlib.import_module(module), function)
        kinds = {name: "constexpr" if name in case.constexprs else case.signature[name] for name in kernel.arg_names}
        constexprs = {(kernel.arg_names.index(name),): value for name, value in case.constexprs.items()}
        aligned = [
            index
            for index, name in enumerate(kernel.arg_names)
            if kinds[name].startswith(("*", "i")) and name not in case.unaligned
        ]
        attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
        source = ASTSource(kernel, signature=kinds, constexprs=constexprs, attrs=attributes)
        options = {"num_warps": case.warps, "num_stages": case.stages, **case.options}
        _done[key] = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _done[key]


def _mnemonic(line: str) -> str | None:
    """`01:-:-:Y:4  @!P0 LDG.E.128 R8, [R12.64];` is `LDG.E.128`."""
    found = re.search(r"\t\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)
    return found[1] if found else None


def _registers(compiled: Any, code: str) -> int:
    """Registers per thread: the highest that the code names, plus one, in steps of eight."""
    highest = max((int(number) for number in re.findall(r"\bR(\d+)\b", code)), default=0)
    return min(255, (highest + 1 + 7) // 8 * 8)


def _innermost_loop(lines: list[str]) -> int:
    """Instructions in the longest loop that has no loop inside."""
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for position, line in enumerate(lines):
        if label := re.match(r"\s*(LBB\w+|\.L_\w+):", line):
            labels[label[1]] = position
        jump = re.search(r"\bBRA\b.*?\b(LBB\w+|\.L_\w+)", line)
        if jump and labels.get(jump[1], position) < position - 1:
            loops.append((labels[jump[1]], position))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return max(
        (
            sum(1 for line in lines[start : stop + 1] if (name := _mnemonic(line)) and name != "NOP")
            for start, stop in inner
        ),
        default=0,
    )


def main(wanted: list[str]) -> None:
    """Prints facts and broken gates of the named cases, or of all; a line of JSON each when RQAT_JSON is set.

    RQAT_CAPABILITY=90 leaves out the other GPUs.
    """
    alone = os.environ.get("RQAT_CAPABILITY")
    for case in all_cases():
        if wanted and not any(case.name.startswith(name) for name in wanted):
            continue
        for capability in case.capabilities:
            if alone and capability != int(alone):
                continue
            found = facts(case, capability)
            broken = broken_gates(case, capability, found)
            if os.environ.get("RQAT_JSON"):
                print(json.dumps({"case": case.name, "capability": capability, "found": found, "broken": broken}))
            else:
                print(
                    f"{case.name} sm_{capability}: {found}{''.join(f'{chr(10)}    BROKEN {line}' for line in broken)}"
                )


if __name__ == "__main__":
    main(sys.argv[1:])
