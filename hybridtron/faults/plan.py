"""What is injected: kinds of faults, and a seeded campaign of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WARM, LAUNCHED = "warm", "launched"  # ranks forked from a process that has imported everything; the local launcher
SAVE_EVERY = 3  # steps
SPACING = 2 * SAVE_EVERY + 1  # steps from one fault to the next; at least one save lies between
# Where a save can be interrupted, in the order of its operations.
POINTS = ("draft", "shard opened", "shard half written", "index", "manifest", "rename", "renamed", "latest", "deletion")
POINTS_OF_ALL = ("shard opened", "shard half written")  # in every rank; the others in rank 0
CHECKPOINT_FILES = ("__0_0.distcp", ".metadata", "common.pt", "metadata.json", "manifest.json", "train_state.json")


@dataclass(frozen=True)
class Kind:
    """A kind of fault. `lasts`: in steps; `loses`: checkpoints that it damages."""

    description: str
    ways: tuple[str, ...] = (WARM, LAUNCHED)
    smallest: int = 1  # processes
    lasts: int = 0
    loses: int = 0


KINDS = {
    "kill": Kind("kill -9 of any rank at a random moment"),
    "kill_starting": Kind("kill -9 of any rank while it starts: imports, rendezvous, reading of the checkpoint"),
    "kill_saving": Kind("kill -9 of any rank inside a save, from its first operation to the last"),
    "kill_all": Kind("kill -9 of all ranks, and of their supervisors"),
    "kill_node": Kind("kill -9 of one rank and its supervisor, as with a node of several", (LAUNCHED,), 2),
    "truncate": Kind("any file of the newest checkpoint cut at a random place, and a kill", loses=1),
    "bit_flip": Kind("a random bit of any file of the newest checkpoint flipped, and a kill", loses=1),
    "file_lost": Kind("any file of the newest checkpoint deleted, and a kill", loses=1),
    "two_damaged": Kind("a random bit flipped in both of the newest checkpoints, and a kill", loses=2),
    "all_damaged": Kind("a random bit flipped in every checkpoint, and a kill", (WARM,), loses=99),
    "latest_lost": Kind("the file `latest` deleted, and a kill"),
    "latest_empty": Kind("the file `latest` empty, and a kill"),
    "latest_dangling": Kind("the file `latest` names no checkpoint, and a kill"),
    "disk_full": Kind("no space left on the device during a save", lasts=SAVE_EVERY + 1),
    "file_limit": Kind("a limit on the size of files (RLIMIT_FSIZE) during a save", lasts=SAVE_EVERY + 1),
    "read_only": Kind("a run folder that cannot be written to during a save", lasts=SAVE_EVERY + 1),
    "vanished": Kind("a run folder that is gone during a save, and then back", lasts=SAVE_EVERY + 1),
    "non_finite": Kind("a gradient of NaN in one rank; the step is skipped"),
    "hang_spin": Kind("one rank stops taking part in collectives and spins in Python", (LAUNCHED,), 2),
    "hang_stop": Kind("one rank stopped (SIGSTOP) for good", (LAUNCHED,)),
    "pause": Kind("one rank stopped (SIGSTOP) and continued after a second"),
    "clock_jump": Kind("the clock of one rank jumps by days or years"),
    "preempt": Kind("SIGTERM to all ranks, and kill -9 within the grace period"),
}


@dataclass(frozen=True)
class Fault:
    """One fault, which happens in `rank` when `step` steps are done."""

    number: int
    kind: str
    rank: int
    step: int
    draw: float  # in [0, 1): a random moment or place, for the kind to interpret
    point: str = ""  # of a save, or a file of a checkpoint

    @property
    def loses(self) -> int:
        return KINDS[self.kind].loses

    @property
    def end(self) -> int:
        """Return the step at which a fault that lasts ends."""
        return self.step + KINDS[self.kind].lasts


@dataclass(frozen=True)
class Session:
    """A run that gets faults one after the other, and recovers from each."""

    number: int
    way: str
    processes: int
    layout: tuple[str, ...]  # overrides of the parallel section
    faults: tuple[Fault, ...]

    @property
    def steps(self) -> int:
        """Return the length of the run; it ends with a save."""
        return self.faults[-1].step + 2 * SPACING if self.faults else SPACING

    @property
    def needs_full_disk(self) -> bool:
        return any(fault.kind == "disk_full" for fault in self.faults)

    @property
    def non_finite(self) -> tuple[tuple[int, int], ...]:
        """Return step and rank of each gradient that is not finite."""
        return tuple((fault.step, fault.rank) for fault in self.faults if fault.kind == "non_finite")


LAYOUTS: dict[int, tuple[tuple[str, ...], ...]] = {
    1: ((),),
    2: (("parallel.tensor=2",), ("parallel.data=2",), ("parallel.data=2", "parallel.distributed_optimizer=true")),
    4: (("parallel.tensor=2", "parallel.data=2"),),
    8: (("parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2"),),
}


def draw_sessions(
    way: str, kinds: Sequence[str], count: int, processes: Sequence[int], seed: int, per_session: int, first: int = 0
) -> Iterator[Session]:
    """Yield sessions with `count` faults of the kinds in turn, and the numbers of processes in turn.

    Order, ranks, moments and places follow from the seed.
    """
    draw = random.Random(f"{seed} {way}")
    queue: list[str] = []
    number = first
    while count > 0:
        size = processes[(number - first) % len(processes)]
        faults = []
        for i in range(min(per_session, count)):
            if not queue:
                queue = list(kinds)
                draw.shuffle(queue)
            usable = next((kind for kind in queue if KINDS[kind].smallest <= size), None)
            if usable is None:
                break
            queue.remove(usable)
            faults.append(_draw_fault(draw, i, usable, size))
        if faults:
            layout = draw.choice(LAYOUTS[size])
            yield Session(number, way, size, layout, tuple(faults))
        else:  # kinds that need more processes than this session has
            queue = []
        count -= max(1, len(faults))
        number += 1


def _draw_fault(draw: random.Random, number: int, kind: str, processes: int) -> Fault:
    """Return a fault of a kind, after those before it in its session."""
    rank = draw.randrange(processes)
    step = (number + 1) * SPACING + draw.randrange(SAVE_EVERY)
    point = ""
    if kind == "kill_saving":
        point = draw.choice(POINTS)
        rank = rank if point in POINTS_OF_ALL else 0
    elif kind in ("truncate", "bit_flip", "file_lost"):
        names = [f"__{shard}_0.distcp" for shard in range(processes)]
        point = draw.choice([*CHECKPOINT_FILES[1:], *names])
    return Fault(number, kind, rank, step, draw.random(), point)
