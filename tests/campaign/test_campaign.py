"""A small run with all stages, ended at every point and in every way; the same command then ends in the same bytes.

    just campaign                     every point: 20 minutes on two cores with `just fuzz`; prints a table
    RQAT_CAMPAIGN_SHARE=20            one point of 20: others with another RQAT_CAMPAIGN_SEED, which is printed
    RQAT_CAMPAIGN_SERVERS=1           as many runs side by side; two unless said otherwise

The everyday suite takes a few points; of several processes, tests/rqat/test_processes.py does.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .compared import contents
from .harness import HEAD, RECIPE, SCALES, SENDINGS, START, Campaign, Outcome, Server, compiled
from .several import Two, moments

SHARE = int(os.environ.get("RQAT_CAMPAIGN_SHARE", "1"))
SEED = int(os.environ.get("RQAT_CAMPAIGN_SEED", "0"))
SERVERS = int(os.environ.get("RQAT_CAMPAIGN_SERVERS", str(min(2, os.cpu_count() or 1))))
SIGNALS = 100
KILLS = 3
"""Of one of two processes, and as many of the one that started them, for each of two objectives."""

IN_MEMORY, NEEDED_BYTES = Path("/dev/shm"), 1 << 30
"""A file system that is kept in memory, and what the campaign takes of it at most."""

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") or shutil.which("cc")), reason="no C compiler for the library that is preloaded"
)


def somewhere(factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, in memory where there is room: what a disk would take for every fsync tells nothing here."""
    if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > NEEDED_BYTES:
        return Path(tempfile.mkdtemp(prefix="campaign-", dir=IN_MEMORY))
    return factory.mktemp("campaign")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """With a run that was left alone."""
    folder = somewhere(tmp_path_factory)
    whole = any(item.get_closest_marker("campaign") for item in request.session.items)
    try:
        library = compiled(folder)
        servers = [Server(library) for _ in range(SERVERS if whole else 1)]
        made = Campaign(folder / "small", RECIPE, [server.ready() for server in servers])
        made.leave_alone()
        yield made
        for server in servers:
            server.close()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def table() -> Iterator[list[Outcome]]:
    """The rows of the campaign, printed at its end."""
    rows: list[Outcome] = []
    yield rows
    print(f"\nseed {SEED}, one point of {SHARE}\n", HEAD, *rows, sep="\n")


def share(points: Sequence[Any]) -> list[Any]:
    """The points to try."""
    return sorted(random.Random(SEED).sample(points, -(-len(points) // SHARE)))


def numbers(campaign: Campaign) -> range:
    """Of the changes of the run that was left alone."""
    return range(1, len(campaign.points) + 1)


def judge(outcome: Outcome, table: list[Outcome]) -> None:
    table.append(outcome)
    assert outcome.tried
    assert not outcome.problems, "\n".join(outcome.problems)


@pytest.mark.slow
def test_a_few_points_of_all(campaign: Campaign) -> None:
    """Killed twice, a disk that is full, one that fails, and a signal in the midst of training."""
    count = len(campaign.points)
    assert count > 100
    outcomes = [
        campaign.crash([count // 4, count // 2]),
        campaign.full_disk([(0, 3), (5, 12)], errno.ENOSPC, "a full disk"),
        campaign.full_disk([(0, 3), (3, 9)], errno.EIO, "a failing disk"),
        campaign.signalled([(signal.SIGTERM, 0.4 * campaign.cpu_s)]),
    ]
    assert not [problem for outcome in outcomes for problem in outcome.problems]


class Deaf(Campaign):
    """Commands that end by themselves where a signal comes later than at `over_s` seconds, or never by a signal."""

    def __init__(self, folder: Path, over_s: float) -> None:
        self.folder, self.over_s, self.sent_s, self.compared = folder, over_s, list[float](), list[str]()
        self._numbers, self._together = itertools.count(), ThreadPoolExecutor(1)

    def command(self, place: Path, until: str = "", **order: Any) -> dict[str, Any]:
        self.sent_s.append(order["after_s"])
        ended = order["after_s"] < self.over_s
        return {"code": 128 + order["signal"] if ended else 0, "output": "", "notes": ["step 01-calibrate 7"]}

    def resumed(self, place: Path, before: list[str], outcome: Outcome, what: str, *, step: int | None = None) -> None:
        outcome.tried += 1
        self.compared.append(what)


def test_a_signal_that_came_too_late_is_sent_earlier(tmp_path: Path) -> None:
    deaf = Deaf(tmp_path, over_s=1.5)
    outcome = deaf.signalled([(signal.SIGTERM, 2.0)])
    assert deaf.sent_s == pytest.approx([2.0, 1.6, 1.28])
    assert deaf.compared == ["signal 15 after 1.28 s"]
    assert (outcome.tried, outcome.problems) == (1, [])


def test_a_signal_that_ends_nothing_is_a_problem_and_not_waited_for_again(tmp_path: Path) -> None:
    deaf = Deaf(tmp_path, over_s=0.0)
    outcome = deaf.signalled([(signal.SIGHUP, 2.0), (signal.SIGHUP, 1.0)])
    assert len(deaf.sent_s) == SENDINGS
    assert not deaf.compared
    assert outcome.tried == 2
    assert [problem.partition(":")[2] for problem in outcome.problems] == [
        " it ends no command, however early; does the process ignore it?"
    ] * 2
    assert str(outcome).startswith("| a signal at a random moment | 2 | 0 |")


@pytest.mark.campaign
def test_killed_after_every_change(campaign: Campaign, table: list[Outcome]) -> None:
    judge(campaign.crash(share(numbers(campaign))), table)


@pytest.mark.campaign
def test_killed_after_every_change_of_a_run_that_starts_from_another(
    campaign: Campaign, table: list[Outcome], tmp_path: Path
) -> None:
    """The other run's folder is read and not changed."""
    [start] = (campaign.folder / "whole" / "run").glob("*-train-kd")
    before = contents(start)
    other = Campaign(tmp_path / "started", START, campaign.servers, start=start)
    other.leave_alone()
    outcome = other.crash(share(numbers(other)))
    outcome.name += ", from another run's step"
    judge(outcome, table)
    assert contents(start) == before


@pytest.mark.campaign
def test_killed_after_every_change_of_a_run_within_a_budget_that_trains_scales_alone(
    campaign: Campaign, table: list[Outcome], tmp_path: Path
) -> None:
    other = Campaign(tmp_path / "scales", SCALES, campaign.servers)
    other.leave_alone()
    outcome = other.crash(share(numbers(other)))
    outcome.name += ", within a budget and with scales alone"
    judge(outcome, table)


@pytest.mark.campaign
@pytest.mark.parametrize(("code", "name"), [(errno.ENOSPC, "a full disk"), (errno.EIO, "a failing disk")])
def test_no_write_from_any_on(campaign: Campaign, table: list[Outcome], code: int, name: str) -> None:
    judge(campaign.full_disk(share(campaign.refusable(code)), code, name), table)


@pytest.mark.campaign
def test_a_signal_at_a_random_moment(campaign: Campaign, table: list[Outcome]) -> None:
    chance = random.Random(SEED)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    moments = [(int(chance.choice(signals)), chance.uniform(0, campaign.cpu_s)) for _ in range(-(-SIGNALS // SHARE))]
    judge(campaign.signalled(moments), table)


@pytest.mark.campaign
@pytest.mark.parametrize("objective", ["kd", "grpo"])
def test_one_of_two_processes_killed_and_the_one_that_started_them(
    table: list[Outcome], tmp_path: Path, objective: str
) -> None:
    """The same bytes after the same command; no process and no temporary file is left over.

    Either victim's points go on beside the other's: most of each is imports, for which a parent and its workers wait.
    """
    two, count = Two(tmp_path / "two", objective), -(-KILLS // SHARE)
    victims = {"one of two processes killed": False, "the parent of two processes killed": True}
    with ThreadPoolExecutor(len(victims)) as together:
        tried = [
            together.submit(two.killed, name, moments(SEED, count, parent=parent)) for name, parent in victims.items()
        ]
    outcomes = [one.result() for one in tried]
    table += outcomes
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    assert not problems, "\n".join(problems)
