"""A world in which much happens through sets of tasks: `python simulated_crowd.py SEED` prints its trace."""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import closing

from rise.testing.simulator.host import Host, SimClock
from rise.testing.simulator.loop import Process, Timeline

WORKERS = 40


async def crowd(process: Process, clock: SimClock) -> None:
    """Workers wait in one set, are cancelled and replaced in the set's order, and tell each other of it."""
    dice, queue = clock.random, asyncio.Queue[str]()

    def note(what: str) -> None:
        print(f"{process.timeline.now:.6f} {process.timeline.steps} {process.name} {what}")

    async def work(name: str) -> str:
        try:
            async with asyncio.timeout(dice.uniform(0.1, 2)):
                await clock.sleep(dice.uniform(0, 3))
            await queue.put(name)
            return await asyncio.to_thread(str.upper, await queue.get())
        except TimeoutError:
            note(f"{name} was too late")
        finally:
            note(f"{name} ends")
        return name

    working = {process.loop.create_task(work(str(number))) for number in range(WORKERS)}
    for round_ in range(20):
        futures = {process.loop.create_future() for _ in range(10)}
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: note(f"future {number}"))  # type: ignore[misc]
        done, working = await asyncio.wait(working, timeout=0.2)
        note("done " + " ".join(task.result() for task in done if not task.cancelled()))
        for task in list(working)[: dice.randrange(8)]:
            task.cancel()
        for future in futures:
            future.set_result(None)
        working |= {process.loop.create_task(work(f"{round_}.{number}")) for number in range(dice.randrange(12))}
    async with asyncio.TaskGroup() as group:
        for number in range(WORKERS):
            group.create_task(work(f"grouped {number}"))
        await clock.sleep(1)
        raise ArithmeticError("the group is cancelled, in the order of its set")


def main(seed: int) -> None:
    dice = random.Random(seed)
    with closing(Timeline()) as timeline:
        host = Host(timeline)
        processes = [Process(timeline, host, name) for name in ("a", "b", "c")]
        for process in processes:
            process.spawn(crowd(process, SimClock(process, random.Random(dice.random()))), "crowd")
        timeline.at(dice.uniform(0, 3), processes[0].kill)
        timeline.at(dice.uniform(0, 1), processes[1].pause)
        timeline.at(dice.uniform(1, 3), processes[1].go_on)
        timeline.run(until=60)
        print(timeline.steps, [process.errors for process in processes])


if __name__ == "__main__":
    main(int(sys.argv[1]))
