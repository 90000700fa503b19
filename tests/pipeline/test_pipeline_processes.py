"""Real processes and a real disk: what blocks, crashes, fills up or breaks, and what stays up beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from rise.capabilities import CapabilityRegistry, CapabilityStatus
from rise.runtime.processes import WorkerProcess
from rise.settings import WORKER_STALL_SECONDS_MIN
from rise.testing.clock import ManualClock
from rise.testing.installation import Installation
from rise.testing.waiting import eventually

pytestmark = pytest.mark.slow

BOT = """
import os, pathlib, time
import rise

HERE = pathlib.Path(__file__).parent


def first_time(name):
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@rise.workflow("bot", channels=["http"])
async def bot(turn):
    if turn.text == "block" and first_time("blocked"):
        while True:
            pass
    if turn.text == "fork" and first_time("forked"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        (HERE / "child").write_text(str(child))
        os.kill(os.getpid(), 9)
    if turn.text == "deadly":
        os.abort()
    await turn.reply(turn.text)


@rise.workflow("slow")
async def slow(turn):
    if first_time("slow"):
        import asyncio
        await asyncio.sleep(60)
    await turn.reply(turn.text)
"""


class Program:
    """A program that uses the API of an installation."""

    def __init__(self, rise: Installation, session: aiohttp.ClientSession) -> None:
        self._rise = rise
        self._session = session

    async def ask(self, text: str, *, wait: float | None = None, **fields: Any) -> tuple[int, dict[str, Any]]:
        body = {"userText": text, **fields}
        if wait is not None:
            body |= {"waitForResult": True, "waitTimeoutSeconds": wait}
        async with self._session.post(f"{self._rise.url}/api/workflows/apply", json=body) as response:
            if response.status == 503:
                assert int(response.headers["Retry-After"]) >= 0
            return response.status, await response.json()

    async def answer(self, text: str, *, wait: float = 30.0, **fields: Any) -> str:
        status, body = await self.ask(text, wait=wait, **fields)
        assert status == 200, (status, body, self._rise.log()[-3000:])
        return str(body["data"]["result"]["text"])

    async def result(self, task_id: str) -> str:
        """Wait until it is answered."""

        async def holds() -> str | None:
            async with self._session.get(f"{self._rise.url}/api/workflows/tasks/{task_id}") as response:
                task = (await response.json())["data"]
                return str(task["result"]["text"]) if task["status"] == "completed" else None

        return str(await self.until(holds, seconds=30))

    async def write(self, text: str, **fields: Any) -> str:
        """Write, and have it accepted."""
        status, body = await self.ask(text, **fields)
        assert status == 200, (status, body)
        return str(body["data"]["taskId"])

    async def capabilities(self) -> dict[str, Any]:
        async with self._session.get(f"{self._rise.url}/healthz") as response:
            assert response.status == 200, "it says how it is for as long as it runs"
            return dict((await response.json())["capabilities"])

    async def until(self, holds: Callable[[], Awaitable[Any]], *, seconds: float = 20.0) -> Any:
        """There is no signal to wait for across processes: asked again and again."""
        try:
            return await eventually(holds, seconds=seconds)
        except TimeoutError:
            raise AssertionError(f"it never came to that; the log:\n{self._rise.log()[-3000:]}") from None

    async def until_worker_is(self, status: str) -> dict[str, Any]:
        async def holds() -> dict[str, Any] | None:
            worker = (await self.capabilities()).get("worker", {})
            return worker if worker.get("status") == status else None

        return dict(await self.until(holds))

    async def until_accepting(self) -> None:
        async def holds() -> bool:
            return (await self.ask("are you there?"))[0] == 200

        await self.until(holds)


@asynccontextmanager
async def program(rise: Installation) -> AsyncIterator[Program]:
    timeout = aiohttp.ClientTimeout(total=40)
    async with aiohttp.ClientSession(headers=rise.headers, timeout=timeout) as session:
        yield Program(rise, session)


@pytest.fixture
def bot(tmp_path: Path) -> Path:
    path = tmp_path / "bot.py"
    path.write_text(BOT)
    return path


def is_running(pid: int) -> bool:
    try:
        return " Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


# --- the worker process -----------------------------------------------------------------------------------


@pytest.mark.req("WRK-7", "QUE-3")
@pytest.mark.failure("D1")
async def test_a_worker_process_that_is_killed_is_replaced_and_its_message_answered(tmp_path: Path, bot: Path):
    async with Installation(tmp_path / "data", app=bot) as rise, program(rise) as caller:
        await caller.until_worker_is("available")
        task = await caller.write("Hello", workflowId="wf_slow")
        await caller.until(lambda: _exists(tmp_path / "slow"))
        [worker] = rise.worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert await caller.result(task) == "Hello"
        assert worker not in rise.worker_pids()


@pytest.mark.req("WRK-7")
@pytest.mark.failure("D5", "E5")
async def test_a_workflow_that_blocks_its_process_stops_neither_acceptance_nor_its_own_end(tmp_path: Path, bot: Path):
    least = WORKER_STALL_SECONDS_MIN
    async with Installation(tmp_path / "data", app=bot, worker_stall_seconds=least) as rise, program(rise) as caller:
        await caller.until_worker_is("available")
        [blocked] = rise.worker_pids()
        task = await caller.write("block")
        await caller.until(lambda: _exists(tmp_path / "blocked"))
        beside = await caller.write("accepted all the same")
        assert await caller.result(task) == "block"
        assert await caller.result(beside) == "accepted all the same"
        assert not is_running(blocked)
        assert "worker.stalled" in rise.log()


@pytest.mark.req("WRK-7", "QUE-3")
@pytest.mark.failure("E4")
async def test_a_message_that_aborts_its_process_is_parked_and_others_are_answered(tmp_path: Path, bot: Path):
    async with Installation(tmp_path / "data", app=bot) as rise, program(rise) as caller:
        _, body = await caller.ask("deadly")
        others = await asyncio.gather(*(caller.answer(f"innocent {n}") for n in range(10)))
        assert others == [f"innocent {n}" for n in range(10)]

        async def parked() -> bool:
            _, listed = await rise.command("suspended", "--json")
            return body["data"]["taskId"] in listed and "poison" in listed

        await caller.until(parked)
        assert await caller.answer("after it") == "after it"


@pytest.mark.req("WRK-7")
async def test_what_a_workflow_has_forked_does_not_hide_the_death_of_its_process(tmp_path: Path, bot: Path):
    async with Installation(tmp_path / "data", app=bot) as rise, program(rise) as caller:
        try:
            assert await caller.result(await caller.write("fork")) == "fork"
        finally:
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


@pytest.mark.req("WRK-7")
@pytest.mark.parametrize("blocked", [False, True])
async def test_the_worker_process_ends_by_itself_when_its_parent_is_killed(tmp_path: Path, bot: Path, blocked: bool):
    async with Installation(tmp_path / "data", app=bot, stop_seconds=0.5) as rise, program(rise) as caller:
        await caller.until_worker_is("available")
        [orphan] = rise.worker_pids()
        if blocked:
            await caller.ask("block")
            await caller.until(lambda: _exists(tmp_path / "blocked"))
        await rise.kill(worker=False)
        try:

            async def gone() -> bool:
                return not is_running(orphan)

            await caller.until(gone)
        finally:
            with suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)


@pytest.mark.req("WRK-7")
@pytest.mark.failure("I14")
async def test_the_worker_process_ends_with_its_parent_even_while_it_waits_for_its_store(tmp_path: Path, bot: Path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "rise.db").write_bytes(b"this is no database" * 1000)
    async with Installation(data, app=bot, stop_seconds=0.5) as rise, program(rise) as caller:

        async def both_wait() -> bool:
            return rise.log().count("store.unavailable") >= 2

        await caller.until(both_wait)
        [orphan] = rise.worker_pids()
        await rise.kill(worker=False)
        try:

            async def gone() -> bool:
                return not is_running(orphan)

            await caller.until(gone)
        finally:
            with suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)


@pytest.mark.req("WRK-7")
async def test_a_worker_that_was_added_before_serves_own_is_up_finds_no_workflow_missing(tmp_path: Path, bot: Path):
    rise = Installation(tmp_path / "data", app=bot)
    await rise.add_worker()
    async with rise, program(rise) as caller:
        assert await caller.answer("Hello") == "Hello"
        assert "workflow_pending" not in rise.log()


@pytest.mark.req("WRK-7", "CAP-6")
@pytest.mark.failure("M1")
async def test_a_bot_that_cannot_be_loaded_leaves_the_door_open_and_is_tried_again(tmp_path: Path, bot: Path):
    bot.write_text("import no_such_library\n" + BOT)
    async with Installation(tmp_path / "data", app=bot) as rise, program(rise) as caller:
        worker = await caller.until_worker_is("unavailable")
        assert "settings" in worker["detail"]
        task = await caller.write("Hello")
        assert "no_such_library" in rise.log()
        bot.write_text(BOT)
        assert await caller.result(task) == "Hello"


@pytest.mark.req("WRK-7")
async def test_a_worker_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    clock = ManualClock()
    capabilities = CapabilityRegistry(clock)
    real, refusals, started = asyncio.create_subprocess_exec, 2, asyncio.Event()

    async def start(*words: Any, **options: Any) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(11, "Resource temporarily unavailable")
        process = await real(sys.executable, "-c", "import time; time.sleep(60)", **options)
        started.set()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    process = WorkerProcess(
        capabilities=capabilities, clock=clock, stall_seconds=60, stop_seconds=0, stop=asyncio.Event()
    )
    await process.start()
    await clock.until_sleeping()
    state = capabilities.get("worker")
    assert state is not None and state.status is CapabilityStatus.UNAVAILABLE
    assert "temporarily unavailable" in state.detail
    clock.advance(1)
    await clock.until_sleeping()
    clock.advance(2)
    async with asyncio.timeout(10):
        await started.wait()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    await process.stop()


# --- the directory ----------------------------------------------------------------------------------------


@pytest.mark.req("EMB-1")
@pytest.mark.failure("C8")
async def test_a_second_serve_on_the_same_directory_is_refused_and_the_first_goes_on(tmp_path: Path, bot: Path):
    async with Installation(tmp_path / "data", app=bot) as rise, program(rise) as caller:
        code, printed = await rise.command("serve")
        assert code != 0
        assert "another `rise serve`" in printed and "rise worker" in printed
        assert "Traceback" not in printed
        assert await caller.answer("Hello") == "Hello"


@pytest.mark.req("CPY-2", "CAP-6", "EMB-1")
@pytest.mark.failure("C9")
async def test_with_a_corrupt_database_it_stays_up_refuses_and_goes_on_when_it_is_mended(tmp_path: Path, bot: Path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "rise.db").write_bytes(b"this is no database" * 1000)
    async with Installation(data, app=bot) as rise, program(rise) as caller:
        status, body = await caller.ask("Hello", idempotencyKey="one")
        assert status == 503, body
        assert "damaged" in (await caller.capabilities())["disk"]["detail"]
        for path in data.glob("rise.db*"):
            path.unlink()
        await caller.until_accepting()
        assert await caller.result(await caller.write("Hello", idempotencyKey="one")) == "Hello"


@pytest.mark.req("CPY-2", "CAP-6", "EMB-1")
@pytest.mark.failure("C10")
async def test_with_a_lost_database_it_stays_up_refuses_and_goes_on_when_it_is_back(tmp_path: Path, bot: Path):
    data = tmp_path / "data"
    async with Installation(data, app=bot) as rise, program(rise) as caller:
        await caller.until_accepting()
        await rise.stop()
        (data / "rise.db").rename(data / "aside")
        code, printed = await rise.command("audit")
        assert code == 1 and "is gone" in printed and "rise restore --force" in printed
        await rise.start()
        status, body = await caller.ask("Hello", idempotencyKey="one")
        assert status == 503, body
        said = (await caller.capabilities())["disk"]
        assert "is gone" in said["detail"] and "rise restore --force" in said["remedy"]
        assert not (data / "rise.db").exists()
        (data / "aside").rename(data / "rise.db")
        await caller.until_accepting()
        assert await caller.result(await caller.write("Hello", idempotencyKey="one")) == "Hello"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    where = tmp_path / "disk"
    where.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", where]).returncode:
        pytest.skip("mounting a disk needs root")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.req("CPY-2", "CAP-6", "EMB-1")
@pytest.mark.failure("C5")
async def test_on_a_full_disk_it_refuses_and_goes_on_when_there_is_room(disk: Path, bot: Path):
    async with Installation(disk / "data", app=bot) as rise, program(rise) as caller:
        rise.log_path = bot.with_name("rise.log")
        assert await caller.answer("before") == "before"
        fill(disk)
        kept, refused = [], None
        for number in range(200):
            key = f"key-{number}"
            status, _ = await caller.ask("x" * 20_000, idempotencyKey=key)
            if status == 503:
                refused = key
                break
            assert status == 200
            kept.append(key)
        assert refused is not None
        assert "disk" in await caller.capabilities()
        (disk / "ballast").unlink()
        await caller.until_accepting()
        for key in (*kept[-3:], refused):
            task = await caller.write("x" * 20_000, idempotencyKey=key)
            assert await caller.result(task) == "x" * 20_000


@pytest.mark.req("CPY-2", "EMB-1")
@pytest.mark.failure("C5")
async def test_it_starts_on_a_full_disk_and_goes_on_when_there_is_room(disk: Path, bot: Path):
    data = disk / "data"
    async with Installation(data, app=bot) as rise, program(rise) as caller:
        assert await caller.answer("before") == "before"
        assert await rise.stop() == 0
        fill(disk)
        await rise.start()
        assert (await caller.ask("x" * 100_000))[0] == 503
        (disk / "ballast").unlink()
        await caller.until_accepting()
        assert await caller.answer("after") == "after"


class FailingDisk:
    """A disk whose kernel can be told that it has met an error: from then on it is read-only."""

    def __init__(self, image: Path, where: Path) -> None:
        self.image = image
        self.where = where
        image.touch()
        os.truncate(image, 32 << 20)
        where.mkdir()
        try:
            self._run("mkfs.ext4", "-q", "-O", "^has_journal", image)
            self.mount()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"making a disk needs root, loop devices and mkfs.ext4: {error}")

    def mount(self) -> None:
        self._run("mount", "-o", "loop,errors=remount-ro", self.image, self.where)

    def unmount(self) -> None:
        self._run("umount", self.where)

    def fail(self) -> None:
        device = self._run("findmnt", "-no", "SOURCE", self.where).strip().rpartition("/")[2]
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test")

    def mend(self) -> None:
        self.unmount()
        subprocess.run(["e2fsck", "-y", "-f", self.image], capture_output=True)
        self.mount()

    def _run(self, *words: str | Path) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[FailingDisk]:
    disk = FailingDisk(tmp_path / "image", tmp_path / "failing")
    yield disk
    disk.unmount()


@pytest.mark.req("CPY-2", "CAP-6", "EMB-1")
@pytest.mark.failure("L9")
async def test_on_a_disk_that_turned_read_only_it_refuses_and_nothing_accepted_is_lost(
    failing_disk: FailingDisk, tmp_path: Path, bot: Path
):
    rise = Installation(failing_disk.where / "data", app=bot)
    rise.log_path = tmp_path / "rise.log"
    async with rise, program(rise) as caller:
        assert await caller.answer("before") == "before"
        failing_disk.fail()
        status, body = await caller.ask("Hello", idempotencyKey="one")
        assert status == 503, body
        assert "disk" in await caller.capabilities()
        await rise.stop()
        failing_disk.mend()
        await rise.start()
        assert await caller.result(await caller.write("Hello", idempotencyKey="one")) == "Hello"
        assert (await rise.command("audit"))[0] == 0
        await rise.stop()


@pytest.mark.req("EMB-1")
@pytest.mark.failure("L9", "M1")
async def test_started_on_a_read_only_disk_it_says_so_and_never_with_a_traceback(disk: Path, bot: Path):
    data = disk / "data"
    async with Installation(data, app=bot) as rise:
        rise.log_path = bot.with_name("rise.log")
        assert await rise.stop() == 0
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        try:
            code, printed = await asyncio.wait_for(rise.command("serve"), 30)
        finally:
            subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert code != 0
        assert "read-only" in printed.lower()
        assert "Traceback" not in printed


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(b"\0" * 4096)


async def _exists(path: Path) -> bool:
    return path.exists()


# --- results that are posted --------------------------------------------------------------------------------


@pytest.mark.req("ENV-7", "CPY-7")
@pytest.mark.failure("D1", "G3")
async def test_a_result_is_posted_again_and_the_same_when_everything_is_killed_while_it_is(tmp_path: Path, bot: Path):
    bodies: list[bytes] = []
    held = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        if len(bodies) == 1:
            await held.wait()  # taken, and nobody hears of it
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    signing = {"callback_secret": "callback-secret-of-the-tests", "http_stage_allow": "127.0.0.1"}
    try:
        async with Installation(tmp_path / "data", app=bot, **signing) as rise, program(rise) as caller:
            await caller.until_worker_is("available")
            task = await caller.write("Hello", callbackUrl=url)
            await caller.until(lambda: _true(len(bodies) == 1))
            await rise.kill()
            await rise.start()
            await caller.until(lambda: _true(len(bodies) == 2))
            assert await caller.result(task) == "Hello"
    finally:
        held.set()
        await runner.cleanup()
    assert bodies[0] == bodies[1], "by its id the receiver knows it again"


async def _true(holds: bool) -> bool:
    return holds
