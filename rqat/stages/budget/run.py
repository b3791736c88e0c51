"""The widths that cost least within the budget, by what was measured of each.

<step>/scheme.json
    {"budget", "bytes": of the weights' file as they are expected, "kl": nats per token that are expected,
     "layers": {full name: scheme},
     "units": [{"layers": [...], "bits": the chosen width, "bytes": {width: count}, "kl": {width: nats per token}}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...budget import Choice, Unit, allot
from ...job import Job
from ...model.layers import ENDS
from ...stage import Step
from ...storage import read_json, write_json
from ..measure import FILE as COSTS
from ..measure import Measure
from ..measure.run import prepared
from . import FILE
from .weigh import Weigher, weighed


def run(job: Job, step: Step) -> dict[str, Any]:
    """Chooses, and writes the choice.

    Returns:
        the budget, the bytes and the KL that are expected, and the layers by their schemes.

    Raises:
        RqatError: the budget is out of bounds.
    """
    costs = read_json(job.result_of(step.inputs[Measure.name]) / COSTS)["units"]
    known = {tuple(entry["layers"]): entry["kl"] for entry in costs}
    model = prepared(job, step)
    weigher, budget = weighed(job, step, model)
    offered = weigher.offered
    options = {
        unit: [Choice(bits, weigher.unit(unit, bits), known[unit].get(str(bits), 0.0)) for bits in offered.widths(unit)]
        for unit in offered.units
    }
    chosen = allot(options, budget - weigher.rest, [unit for unit in offered.units if unit[0] in ENDS])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _told(job, step, budget, chosen, options, weigher, parameters)


def _told(
    job: Job,
    step: Step,
    budget: int,
    chosen: Mapping[Unit, Choice],
    options: Mapping[Unit, Sequence[Choice]],
    weigher: Weigher,
    parameters: int,
) -> dict[str, Any]:
    """Writes scheme.json; what the report tells."""
    layers = weigher.offered.mapping({unit: choice.bits for unit, choice in chosen.items()})
    count = weigher.rest + sum(choice.bytes for choice in chosen.values())
    kl = sum(choice.kl for choice in chosen.values())
    entries = [
        {
            "layers": list(unit),
            "bits": choice.bits,
            "bytes": {str(one.bits): one.bytes for one in options[unit]},
            "kl": {str(one.bits): one.kl for one in options[unit]},
        }
        for unit, choice in chosen.items()
    ]
    spelled = {name: str(scheme) for name, scheme in layers.items()}
    write_json(
        job.workdir(step) / FILE, {"budget": budget, "bytes": count, "kl": kl, "layers": spelled, "units": entries}
    )
    return {
        "budget_bytes": budget,
        "expected_bytes": count,
        "expected_bits_per_parameter": round(8 * count / parameters, 4),
        "expected_kl": kl,
        "layers": _by_scheme(spelled),
    }


def _by_scheme(spelled: Mapping[str, str]) -> dict[str, list[str]]:
    """Full names of layers by the spelling of their scheme."""
    return {scheme: [name for name, own in spelled.items() if own == scheme] for scheme in sorted({*spelled.values()})}
