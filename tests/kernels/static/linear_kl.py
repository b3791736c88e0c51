"""Row kernels of linear_kl as a bfloat16 step over a padded vocabulary launches them; the loop is a pair of tiles.

Reading and writing a pair of logits in both passes, 10 bytes, leaves time for 75 instructions on an H200: the 29
allowed for the forward divergence are well below. With at most 48 registers enough loads are under way.
"""

from __future__ import annotations

from sass import Case

ROWS = "rqat_kernels.linear_kl.rows"
LANES, WARPS = 512, 16
COMMON = {"SPLITS": 8, "LANES": LANES, "FAST": True}
READ = {
    "student": "*bf16", "teacher": "*bf16", "labels": "*i64", "partial": "*fp32", "student_stride": "i32",
    "teacher_stride": "i32", "tiles": "i32", "tokens": "i32", "c": "fp32",
}  # fmt: skip
WRITE = READ | {
    "sums": "*fp32", "inverse": "*fp32", "losses": "*fp32", "rows": "i32", "beta": "fp32", "kl_weight": "fp32",
    "grad_weight": "fp32", "label_weight": "fp32",
}  # fmt: skip
SUMS = {name: kind for name, kind in WRITE.items() if name not in ("labels", "inverse", "losses", "rows")}


def case(name: str, function: str, signature: dict[str, str], limit: float, **variant: object) -> Case:
    return Case(
        name=f"linear_kl-{name}",
        kernel=f"{ROWS}:{function}",
        signature=signature,
        constexprs=COMMON | variant,
        unaligned=("rows", "tiles", "tokens"),
        warps=WARPS,
        elements=8 * LANES,
        per_element={80: limit, 90: limit},
        wide=1.0 if function == "statistics" else None,
        registers=48,
    )


CASES = [
    case("statistics-forward", "statistics", READ, 17, KIND=1, LABELS=False, PLAIN=False),
    case("gradient-forward", "gradient", WRITE, 12, KIND=1, LABELS=False, PLAIN=False),
    case("gradient-reverse-labels", "gradient", WRITE, 18.5, KIND=2, LABELS=True, PLAIN=True),
    case("sums-jsd", "jsd_sums", SUMS, 21),
]
