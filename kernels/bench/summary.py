"""The figures that matter most, one line each: what was measured, its limit, and the best published elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .table import Row

Finder = Callable[[Sequence[Row]], "tuple[str, str] | None"]
"""From a GPU's rows: what was measured, and the limit; None where it was not."""


@dataclass(frozen=True)
class Figure:
    """A line of the table; `find` gives what was measured, and the limit; `peer` is the best published elsewhere."""

    item: str
    peer: str
    find: Finder


def lines(rows: Sequence[Row]) -> list[str]:
    """The table's lines: item, measured, limit, peer."""
    cells = []
    for figure in FIGURES:
        found, limit = figure.find(rows) or ("not measured", "")
        cells.append(f"| {figure.item} | {found} | {limit} | {figure.peer} |")
    return cells


def mix(rows: Iterable[Row], model: str, provider: str, x: int) -> tuple[float, float] | None:
    """Speedup over cuBLAS of the four linears of a block together, measured and at the limit; the sweep's rows only."""
    ours, base = {}, {}
    for row in rows:
        if row.op != "packed_linear" or row.mode == "check" or row.x != x or row.p50 is None or "with" in row.config:
            continue
        name = str(row.config.get("shape", ""))
        if name.startswith(f"{model}.") and not name.endswith(".head"):
            if row.provider == provider:
                ours[name] = row
            elif row.provider == "cublas bf16":
                base[name] = row
    if len(ours) < 4 or len(base) < 4:
        return None
    reference = sum(row.p50 or 0.0 for row in base.values())
    limit = sum(row.limit_us or 0.0 for row in ours.values())
    return reference / sum(row.p50 or 0.0 for row in ours.values()), reference / limit if limit else 0.0


def _mixes(model: str, bits: Sequence[int], xs: Sequence[int], *, label: str) -> Finder:
    def find(rows: Sequence[Row]) -> tuple[str, str] | None:
        found, limits = [], []
        for b in bits:
            for x in xs:
                name = label.format(b=b, x=x)
                got = mix(rows, model, f"rqat {b} bits", x)
                found.append(f"{name}{got[0]:.2f}x" if got else f"{name}not measured")
                limits.append(f"{name}{got[1]:.1f}x" if got else "")
        return (", ".join(found), ", ".join(filter(None, limits))) if any(limits) else None

    return find


def _small_models(rows: Sequence[Row]) -> tuple[str, str] | None:
    got = {model: mix(rows, model, "rqat 2 bits", 1) for model in ("4b", "0.6b")}
    if not any(got.values()):
        return None
    cells = [f"{model}: {pair[0]:.2f}x" if pair else f"{model}: not measured" for model, pair in got.items()]
    return ", ".join(cells), ", ".join(f"{model}: {pair[1]:.1f}x" for model, pair in got.items() if pair)


def _pick(rows: Iterable[Row], op: str, provider: str, x: float | None = None, **config: object) -> Row | None:
    """The last row of that kind that holds a time or a rate."""
    found = None
    for row in rows:
        same = (
            row.op == op and row.provider == provider and x in (None, row.x) and row.metric not in ("memory", "error")
        )
        if same and row.mode != "check" and row.p50 and all(row.config.get(k) == v for k, v in config.items()):
            found = row
    return found


def _decoding(model: str, batch: int, **config: object) -> Finder:
    def find(rows: Sequence[Row]) -> tuple[str, str] | None:
        found = [(head, _pick(rows, "decoding", "rqat", batch, model=model, head=head, **config)) for head in (16, 4)]
        cells = [f"{row.p50:,.0f} tok/s (head of {head} bits)" for head, row in found if row and row.p50]
        return (", ".join(cells), "") if cells else None

    return find


def _steps(rows: Sequence[Row]) -> tuple[str, str] | None:
    cells = []
    for tokens in (4096, 16384):
        ours, base = (_pick(rows, "training", name, tokens) for name in ("rqat", "bf16"))
        more = f"{ours.p50 / base.p50 - 1:+.1%}" if ours and base and ours.p50 and base.p50 else "not measured"
        cells.append(f"{tokens // 1024}k: {more}")
    return (", ".join(cells), "") if any("%" in cell for cell in cells) else None


def _latent_step(rows: Sequence[Row]) -> tuple[str, str] | None:
    shape = "8b.gate_up"
    ours, eager, compiled = (_pick(rows, "latent_step", name, shape=shape) for name in ("rqat", "torch", "compile"))
    if not ours or not ours.p50:
        return None
    cells = [f"{other.p50 / ours.p50:.1f}x" if other and other.p50 else "not measured" for other in (eager, compiled)]
    if compiled and compiled.p50:
        cells[1] = f"{compiled.p50 / ours.p50:.2f}x"
    share = "" if ours.fraction is None else f"{ours.fraction:.0%} of bandwidth reached"
    return " / ".join(cells), share


def _distillation(rows: Sequence[Row]) -> tuple[str, str] | None:
    trained = [row for row in rows if "head" not in row.config]  # a frozen head needs one product less
    row = _pick(trained, "linear_kl", "rqat", 8192, divergence="forward")
    if not row or not row.p50 or not row.limit_us:
        return None
    more = []
    for head, config in (("trained", row.config), ("frozen", row.config | {"head": "frozen"})):
        extra = [
            other.p50
            for other in rows
            if (other.op, other.provider, other.metric, other.x) == ("linear_kl", "rqat", "memory", 8192)
            and other.config == config
            and other.p50 is not None
        ]
        more += [f"{extra[-1] / 1e3:.2f} GB ({head} head)"] if extra else []
    return f"{row.p50 / row.limit_us:.2f}x; {', '.join(more) or 'memory not measured'}", "1x"


def _whole_gptq(rows: Sequence[Row]) -> tuple[str, str] | None:
    whole = [row for row in rows if row.mode == "full"]
    found = [_pick(whole, "whole_gptq", "rqat", model=model) for model in ("0.6b", "4b", "8b")]
    if not any(found):
        return None
    return " / ".join(f"{row.p50:.1f} s" if row else "not measured" for row in found), ""


def _column_loop(rows: Sequence[Row]) -> tuple[str, str] | None:
    on_a_core = [row for row in rows if "on" in row.config and row.op == "gptq_block" and row.provider == "rqat"]
    cells = [f"{row.config['shape']}: {row.ratio:.0f}x" for row in on_a_core if row.ratio]
    return (", ".join(cells), "") if cells else None


FIGURES = (
    Figure(
        "`packed_linear`, 2 bits, linears of an 8B block, 1 / 8 rows, over cuBLAS bf16",
        "2.6x", _mixes("8b", (2,), (1, 8), label="M={x}: "),
    ),
    Figure(
        "`packed_linear`, 3 / 4 bits, the same",
        "2.4x / 2.2-2.6x", _mixes("8b", (3, 4), (1, 8), label="{b} bits M={x}: "),
    ),
    Figure(
        "`packed_linear`, 2 bits, 16 / 32 / 64 rows",
        "2.5x / - / 1.5x (4 bits)", _mixes("8b", (2,), (16, 32, 64), label="M={x}: "),
    ),
    Figure("`packed_linear`, 2 bits, 4B and 0.6B blocks, 1 row", "-", _small_models),
    Figure("128 / 256 rows, 2 bits", "0.5-1.0x", _mixes("8b", (2,), (128, 256), label="M={x}: ")),
    Figure("Decoding 0.6B, 1 sequence", "1,033 (bf16, RTX 5090)", _decoding("0.6b", 1)),
    Figure("Decoding 8B, 1 sequence", "200-280 (bf16)", _decoding("8b", 1)),
    Figure(
        "Decoding 0.6B, 256 sequences of mixed lengths, reading included", "10,000 (A800)",
        _decoding("0.6b", 256, context="mixed"),
    ),
    Figure("Training step over a bf16 step, 4k / 16k tokens", "-7 to -55 % throughput", _steps),
    Figure("`latent_step` over eager / compiled torch", "2.1x (eager)", _latent_step),
    Figure(
        "`linear_kl`, 8k tokens: time over its matrix products; memory beyond inputs and gradients",
        "2.2x; 2-9 GB (Liger)", _distillation,
    ),
    Figure("GPTQ with 262k tokens: 0.6B / 4B / 8B", "8B about 30 min (A100)", _whole_gptq),
    Figure("GPTQ's column loop on one CPU core, over plain torch", "plain torch", _column_loop),
)  # fmt: skip
"""The lines in their order."""
