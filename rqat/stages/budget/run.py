"""The widths that cost least within the budget, by what was measured of each.

<step>/scheme.json
    {"budget", "bytes": of the weights' file as they are expected, "kl": nats per token that are expected,
     "layers": {full name: scheme},
     "units": [{"layers": [...], "bits": the chosen width, "bytes": {width: count}, "kl": {width: nats per token}}]}
"""

from __future__ import annotations

from collections.abc import Mapping
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
    measured = read_json(job.result_of(step.inputs[Measure.name]) / COSTS)["units"]
    costs = {tuple(entry["layers"]): {int(bits): kl for bits, kl in entry["kl"].items()} for entry in measured}
    weigher, budget = weighed(job, step, prepared(job, step))
    chosen = choose(weigher, budget, costs)
    write_json(job.workdir(step) / FILE, chosen)
    return {
        "budget_bytes": budget,
        "expected_bytes": chosen["bytes"],
        "expected_bits_per_parameter": round(8 * chosen["bytes"] / weigher.parameters, 4),
        "expected_kl": chosen["kl"],
        "layers": _by_scheme(chosen["layers"]),
    }


def choose(weigher: Weigher, budget: int, costs: Mapping[Unit, Mapping[int, float]]) -> dict[str, Any]:
    """The widths that cost least within a budget; contents of scheme.json.

    Args:
        budget: bytes of the file.
        costs: nats per token by unit and width; what is not known costs nothing.
    """
    offered = weigher.offered
    options = {
        unit: [Choice(bits, weigher.unit(unit, bits), costs[unit].get(bits, 0.0)) for bits in offered.widths(unit)]
        for unit in offered.units
    }
    chosen = allot(options, budget - weigher.rest, [unit for unit in offered.units if unit[0] in ENDS])
    layers = offered.mapping({unit: choice.bits for unit, choice in chosen.items()})
    entries = [
        {
            "layers": list(unit),
            "bits": choice.bits,
            "bytes": {str(one.bits): one.bytes for one in options[unit]},
            "kl": {str(one.bits): one.kl for one in options[unit]},
        }
        for unit, choice in chosen.items()
    ]
    return {
        "budget": budget,
        "bytes": weigher.rest + sum(choice.bytes for choice in chosen.values()),
        "kl": sum(choice.kl for choice in chosen.values()),
        "layers": {name: str(scheme) for name, scheme in layers.items()},
        "units": entries,
    }


def _by_scheme(spelled: Mapping[str, str]) -> dict[str, list[str]]:
    """Full names of layers by the spelling of their scheme."""
    return {scheme: [name for name, own in spelled.items() if own == scheme] for scheme in sorted({*spelled.values()})}
