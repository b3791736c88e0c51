"""A saved optimizer state, laid out again for another number of processes.

A process saves the rows that it holds, in buckets: the groups of several layers, one below the other. Latents, scales,
zero points and moments of a bucket are tensors of as many rows as it has groups. Here the rows that several processes
have saved, or one that held them all, become the buckets of a process that holds others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .shards import Share

OF_BUCKETS = ("latents", "scales", "zeros")
"""The inner optimizer's groups that have a parameter for every bucket; the other has what is trained beside."""

Bucket = Sequence[Sequence[Any]]
"""Its layers: name, rows, and weights of a row."""


def regrouped(
    saved: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any], share: Share, fixed: Collection[str]
) -> dict[str, Any]:
    """A state of the layout of `wanted`.

    Args:
        saved: `QuantizedOptimizer.state_dict` of every process that saved its rows, by rank; or of one that had all.
        wanted: the same of this process, as it is now.
        share: the rows of every layer that it holds.
        fixed: layers whose zero points are not trained.

    Raises:
        KeyError, ValueError, RuntimeError: what was saved is of another model.
    """
    parts = [_Part(state, fixed) for state in saved]
    layout: Sequence[Bucket] = wanted["layout"]
    found: dict[str, Any] = {key: saved[0][key] for key in ("format", "scheme", "steps_done")}
    found["layout"] = layout
    if set(found["scheme"].split(", ")) == set(wanted["scheme"].split(", ")):
        found["scheme"] = wanted["scheme"]  # of several schemes it is a list, one for each bucket
    found["buckets"] = [
        {name: _of_bucket(bucket, parts, share, partial(_Part.bucket, name=name)) for name in like}
        for bucket, like in zip(layout, wanted["buckets"], strict=True)
    ]
    found["masters"] = {name: _of_all(parts, share, partial(_Part.master, name=name)) for name in wanted["masters"]}
    inner = saved[0]["inner"]
    if inner is None:
        return {**found, "inner": None}
    states: dict[int, dict[str, Any]] = {}
    for group in wanted["inner"]["param_groups"]:
        name = group["name"]
        if name in OF_BUCKETS:
            own = [bucket for bucket in layout if name != "zeros" or bucket[0][0] not in fixed]
            for number, bucket in zip(group["params"], own, strict=True):
                states[number] = _moments_of_bucket(bucket, parts, share, name)
        else:
            for number, master in zip(group["params"], wanted["masters"], strict=True):
                states[number] = _moments_of_master(master, parts, share, name)
    settings = {group["name"]: group for group in inner["param_groups"]}
    groups = [{**settings[group["name"]], "params": group["params"]} for group in wanted["inner"]["param_groups"]]
    return {**found, "inner": {"state": {key: one for key, one in states.items() if one}, "param_groups": groups}}


class _Part:
    """What one process saved.

    Attributes:
        buckets: of every layer its bucket, at which of the bucket's weights it begins, how many it has, and how many
            rows these are.
    """

    def __init__(self, state: Mapping[str, Any], fixed: Collection[str]) -> None:
        self.state = state
        self.buckets: dict[str, tuple[int, int, int, int]] = {}
        self._totals: list[int] = []
        for number, bucket in enumerate(state["layout"]):
            begin = 0
            for name, rows, width in bucket:
                self.buckets[name] = (number, begin, rows * width, rows)
                begin += rows * width
            self._totals.append(begin)
        self._numbers: dict[str, dict[Any, int]] = {}
        for group in state["inner"]["param_groups"] if state["inner"] is not None else ():
            keys: list[Any] = list(state["masters"])
            if group["name"] in OF_BUCKETS:
                free = group["name"] != "zeros"
                keys = [at for at, bucket in enumerate(state["layout"]) if free or bucket[0][0] not in fixed]
            self._numbers[group["name"]] = dict(zip(keys, group["params"], strict=True))

    def bucket(self, number: int, name: str) -> Tensor:
        """A tensor of a bucket."""
        found: Tensor = self.state["buckets"][number][name]
        return found

    def master(self, name: str) -> Tensor | None:
        """What is trained beside; None where no row of it was here."""
        found: Tensor | None = self.state["masters"].get(name)
        return found

    def moment(self, key: int | str, group: str, name: str) -> Tensor:
        """One of `moments`."""
        found: Tensor = self.moments(group, key)[name]
        return found

    def moments(self, group: str, key: int | str) -> dict[str, Any]:
        """The inner optimizer's state of a bucket, or of what is trained beside, by name; empty before a first step."""
        found: dict[str, Any] = self.state["inner"]["state"].get(self._numbers[group][key], {})
        return found

    def layer(self, name: str, tensor: Tensor) -> Tensor:
        """Its part of a tensor of its bucket, by rows of the layer: `(rows, groups, ...)`."""
        number, begin, count, rows = self.buckets[name]
        group = self._totals[number] // len(tensor)
        return tensor[begin // group : (begin + count) // group].view(rows, -1, *tensor.shape[1:])


def _of_bucket(bucket: Bucket, parts: Sequence[_Part], share: Share, read: Callable[[_Part, int], Tensor]) -> Tensor:
    """This process's rows of what `read` finds in the parts' buckets, for the layers of `bucket`."""
    found = []
    for name, rows, _ in bucket:
        pieces = [part.layer(name, read(part, part.buckets[name][0])) for part in parts if name in part.buckets]
        own = share.of(torch.cat(pieces))
        if len(own) != rows:
            raise ValueError(f"'{name}' has {sum(map(len, pieces))} rows")
        found.append(own.flatten(0, 1))
    return torch.cat(found)


def _of_all(parts: Sequence[_Part], share: Share, read: Callable[[_Part], Tensor | None]) -> Tensor:
    """The same of a tensor that is in no bucket; a part without rows of it has none."""
    return share.of(torch.cat([piece for part in parts if (piece := read(part)) is not None]))


def _moments_of_bucket(bucket: Bucket, parts: Sequence[_Part], share: Share, group: str) -> dict[str, Any]:
    first = next(part for part in parts if bucket[0][0] in part.buckets)
    like = first.moments(group, first.buckets[bucket[0][0]][0])
    return {
        key: _of_bucket(bucket, parts, share, partial(_Part.moment, group=group, name=key))
        if _has_rows(value)
        else copy.deepcopy(value)
        for key, value in like.items()
    }


def _moments_of_master(master: str, parts: Sequence[_Part], share: Share, group: str) -> dict[str, Any]:
    holders = [part for part in parts if master in part.state["masters"]]
    return {
        key: _of_all(holders, share, partial(_Part.moment, key=master, group=group, name=key))
        if _has_rows(value)
        else copy.deepcopy(value)
        for key, value in holders[0].moments(group, master).items()
    }


def _has_rows(value: Any) -> bool:
    """Whether it is no counter, which is the same for all, and of which every bucket has its own."""
    return isinstance(value, Tensor) and value.dim() > 0
