"""What the tests run in processes of their own: `python journal_child.py <what> <directory> …`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from journals import keep

from rise.clock import SystemClock
from rise.copies.slots import Slots


async def keep_for_ever(directory: Path, first: str) -> None:
    """Says its slot, then every number once it is acknowledged."""
    journal = await Slots(directory, clock=SystemClock()).take()
    os.write(1, b"%d\n" % journal.number)

    async def keep_one(number: int) -> None:
        await keep(journal, number)
        os.write(1, b"%d\n" % number)

    number = int(first)
    while True:
        await asyncio.gather(*(keep_one(each) for each in range(number, number + 7)))
        number += 7


async def take_and_hold(directory: Path) -> None:
    """Says its slot, and keeps it until told to end."""
    journal = await Slots(directory, clock=SystemClock()).take()
    os.write(1, b"%d\n" % journal.number)
    await asyncio.to_thread(sys.stdin.readline)
    await journal.close()


async def fork_and_die(directory: Path) -> None:
    """Leaves a child behind that knows nothing of the slot."""
    journal = await Slots(directory, clock=SystemClock()).take()
    await keep(journal, 1)
    if os.fork() == 0:
        os.write(1, b"%d\n" % journal.number)
        sys.stdin.readline()
    os._exit(0)


if __name__ == "__main__":
    what, directory, *rest = sys.argv[1:]
    asyncio.run(globals()[what](Path(directory), *rest))
