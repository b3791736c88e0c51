"""Machine code of the Hessian's kernels, as the launcher configures them."""

from sass import Case

POINTERS = {"x": "*bf16", "out": "*fp32", "tiles": "*i32"}
SIZES = dict.fromkeys(("tokens", "width", "share", "stride_x", "stride_share"), "i32")


def _case(name: str, columns: int, *, even: bool, add: bool, on: tuple[int, ...] = (80, 90)) -> Case:
    return Case(
        f"hessian-{name}",
        "rqat_kernels.hessian.kernel:gram_kernel",
        POINTERS | SIZES,
        {"ROWS": 128, "COLUMNS": columns, "TOKENS": 64, "EVEN": even, "ADD": add},
        unaligned=() if even else ("tokens",),
        warps=8,
        stages=4,
        capabilities=on,
        matrix="HGMMA",
        wide=0.5,
    )


CASES = [
    _case("wide", 256, even=True, add=True, on=(90,)),
    _case("narrow", 128, even=True, add=False),
    _case("ragged", 256, even=False, add=True, on=(90,)),
]
