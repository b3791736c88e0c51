"""Several processes that train together, one for each GPU, as torchrun and `accelerate launch` start them.

The leader, of rank 0, runs the pipeline as if it were alone: it holds the folder's lock, does every step, writes and
shows everything. The followers take part where it calls for them, in training, and write and show nothing.

    leader                        followers
    call(order)      ->           next_call() gives the order
    gather(text)     <-           gather(text)
    ends with 0      ->           next_call() gives None
    fails            ->           end at once, with its exit code
    ends at once     <-           one fails on its own, and shows why

Between them is the launcher's store and no collective operation: they may wait for each other for hours. Only what is
done within `together` has a process group. Outside of it the variables that tell of one are not in the environment:
libraries that find them there start a group by themselves and wait for processes that never come.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .errors import RqatError

if TYPE_CHECKING:
    from torch.distributed import PrefixStore, TCPStore

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Variables by which a library recognizes one of several processes."""

PLACE = ("MASTER_ADDR", "MASTER_PORT")
"""Where the store is."""

SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}

LOOK_S = 0.05
"""Seconds between two looks at the store."""

PATIENCE_S = 5.0
"""Seconds that a failed follower leaves the leader to say the same, and the leader its followers to end."""

LONGEST = timedelta(days=1)
"""Of one collective operation: the leader writes a checkpoint while the others wait in the next one."""

_KEPT: list[Any] = []
"""Groups that were destroyed: freeing one joins threads of which one may wait for the interpreter's lock, for ever."""

HELD_BACK = 1 << 16
"""Characters kept of what a follower would have printed."""


class Processes:
    """This process among those that train together; alone unless told otherwise.

    Attributes:
        rank: of this process; 0 is the leader.
        count: of all processes, on all machines.
        local_rank: of this process on its machine: the GPU it takes.
        local_count: of the processes on this machine.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0, local_count: int = 1) -> None:
        self.rank, self.count, self.local_rank, self.local_count = rank, count, local_rank, local_count
        self._server: TCPStore | None = None
        self._calls = self._answers = 0
        self._over = threading.Event()

    @classmethod
    def here(cls) -> Processes:
        """What the environment says; the variables in `RANKS` are taken out of it."""
        given = {name: os.environ.pop(name, "") for name in RANKS}
        count = given["WORLD_SIZE"]
        if not (count.isdecimal() and int(count) > 1 and given["RANK"] and given["LOCAL_RANK"]):
            return cls()
        if not all(os.environ.get(name) for name in PLACE):
            return cls()
        local_count = given["LOCAL_WORLD_SIZE"] or count
        return cls(int(given["RANK"]), int(count), int(given["LOCAL_RANK"]), int(local_count))

    @property
    def leads(self) -> bool:
        """Whether this is the leader, or alone."""
        return self.rank == 0

    def prepare(self, device: str) -> None:
        """Takes this process's GPU, if `device` is "cuda".

        Raises:
            RqatError: there are fewer GPUs than processes, or the model is to be sharded.
        """
        if self.count == 1:
            return
        for variable, name in SHARDED.items():
            if os.environ.get(variable, "").lower() == "true":
                raise RqatError(
                    f"{name} splits a model over processes; here every process holds all of it.",
                    hint="Start with torchrun, or with an accelerate configuration for plain multi-GPU training.",
                )
        if device != "cuda":
            return
        import torch

        there = torch.cuda.device_count()
        if self.local_count > there:
            raise RqatError(
                f"{self.local_count} processes were started here, for {there} GPU{'s' if there > 1 else ''}.",
                hint=f"Start as many as there are GPUs: torchrun --nproc-per-node {there} ...",
            )
        torch.cuda.set_device(self.local_rank)

    # ------------------------------------------------------------------------------------------- leader and followers

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Around all that a process does. The leader's end is told to the followers.

        A follower prints nothing and leaves Ctrl-C to the leader. When it fails on its own, it shows what it held back.

        Raises:
            SystemExit: always in a follower; in the leader when a follower has failed and shown why.
        """
        if self.count == 1:
            yield
            return
        # DDP warns of what `ddp_arguments` asks for on purpose.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        self._server = self._connect()
        if self.leads:
            with self._leading():
                yield
        else:
            with self._following():
                yield

    def _connect(self) -> TCPStore:
        from torch.distributed import TCPStore

        by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address, port = (os.environ[name] for name in PLACE)
        return TCPStore(
            address,
            int(port),
            is_master=self.leads and not by_launcher,
            timeout=timedelta(minutes=30),
            wait_for_workers=False,
            multi_tenant=True,
        )

    def _store(self, room: str = "words") -> PrefixStore:
        """A connection of its own: a connection is blocked while somebody waits on it."""
        from torch.distributed import PrefixStore

        assert self._server is not None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"rqat/{attempt}/{room}", self._server.clone())  # type: ignore[attr-defined]

    @contextmanager
    def _leading(self) -> Iterator[None]:
        self._words = self._store()
        threading.Thread(target=self._end_with, args=["failed"], daemon=True).start()
        code = 1
        try:
            yield
            code = 0
        except SystemExit as end:
            code = _code(end)
            raise
        except KeyboardInterrupt:
            code = 130
            raise
        except Exception:
            if self._words.check(["failed"]):  # it has shown why; what is seen here is the broken connection
                code = int(self._words.get("failed"))
                raise SystemExit(code) from None
            raise
        finally:
            self._end(code)

    def _end(self, code: int) -> None:
        """Tells the followers, and gives them some time to end."""
        self._over.set()
        self._words.set("end", str(code))
        deadline = time.monotonic() + PATIENCE_S
        while self._words.add("gone", 0) < self.count - 1 and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    @contextmanager
    def _following(self) -> Iterator[None]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._words = self._store()
        threading.Thread(target=self._end_with, args=["end"], daemon=True).start()
        screen, held = sys.stderr, _Held()
        streams = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = held
        code = 0
        try:
            yield
        except SystemExit as end:
            code = _code(end)
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout, sys.stderr = streams
        if code:
            time.sleep(PATIENCE_S)
            self._over.set()
            screen.write(f"Process {self.rank} of {self.count}, where 0 leads:\n{held.getvalue()}")
            screen.flush()
            self._words.set("failed", str(code))
        self._over.set()
        self._words.add("gone", 1)
        raise SystemExit(code)

    def _end_with(self, word: str) -> None:
        """In a thread: ends the process when another has failed, which sets `word`, whatever it is waiting for."""
        code, words = 0, self._store()
        while code == 0 and not self._over.wait(LOOK_S):
            try:
                if words.check([word]):
                    code = int(words.get(word))
                    if code == 0:
                        return
                    words.add("gone", 1)
            except RuntimeError:  # the store is gone, and with it the leader or the launcher
                code = 1
        if not self._over.is_set():
            os._exit(code)

    def call(self, order: dict[str, Any]) -> None:
        """The leader's: has every follower's `next_call` give `order`."""
        if self.count > 1:
            self._calls += 1
            self._words.set(f"call/{self._calls}", json.dumps(order))

    def next_call(self) -> dict[str, Any] | None:
        """A follower's: the leader's next order, however long that takes; None when the leader has ended well."""
        self._calls += 1
        key = f"call/{self._calls}"
        while not self._words.check([key]):
            if self._words.check(["end"]) and int(self._words.get("end")) == 0:  # else this process is about to end
                return None
            time.sleep(LOOK_S)
        return dict(json.loads(self._words.get(key)))

    def gather(self, text: str = "") -> list[str]:
        """Every process's `text`, by rank, in the leader, which waits for all; in a follower, only its own."""
        if self.count == 1:
            return [text]
        self._answers += 1
        if not self.leads:
            self._words.set(f"answer/{self._answers}/{self.rank}", text)
            return [text]
        keys = [f"answer/{self._answers}/{rank}" for rank in range(1, self.count)]
        while not self._words.check(keys):
            time.sleep(LOOK_S)
        return [text, *(self._words.get(key).decode() for key in keys)]

    # ------------------------------------------------------------------------------------------- the process group

    @contextmanager
    def together(self, device: str) -> Iterator[None]:
        """With a process group: NCCL on "cuda", else gloo. To be entered by all processes."""
        if self.count == 1:
            yield
            return
        import torch.distributed as dist
        from accelerate.state import AcceleratorState

        os.environ.update(zip(RANKS, map(str, (self.rank, self.count, self.local_rank, self.local_count)), strict=True))
        # A group finds nothing in its store that an earlier one has left there.
        dist.init_process_group(
            _backend(device),
            store=self._store(f"group/{self._calls}"),
            rank=self.rank,
            world_size=self.count,
            timeout=LONGEST,
        )
        _KEPT.append(dist.group.WORLD)
        yield
        # Not after an error: the process ends, and others may be waiting in the middle of an operation.
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in RANKS:
            os.environ.pop(name, None)

    def arguments(self, device: str) -> dict[str, Any]:
        """Settings of a Trainer that trains together."""
        if self.count == 1:
            return {}
        return {
            "ddp_backend": _backend(device),
            # Frozen models have none that change.
            "ddp_broadcast_buffers": False,
            # DDP would lay out its buckets anew after the first step, and a sum of three or more depends on the layout:
            # a run that resumes from a checkpoint would end with other bits. With this it does not.
            "ddp_find_unused_parameters": True,
        }


class _Held(io.StringIO):
    """The last characters written."""

    def write(self, text: str) -> int:
        if self.tell() > 2 * HELD_BACK:
            kept = self.getvalue()[-HELD_BACK:]
            self.seek(0)
            self.truncate()
            super().write(kept)
        return super().write(text)


def _backend(device: str) -> str:
    return "nccl" if device == "cuda" else "gloo"


def _code(end: SystemExit) -> int:
    """The exit code of a process that ends with `end`."""
    return end.code if isinstance(end.code, int) else int(end.code is not None)
