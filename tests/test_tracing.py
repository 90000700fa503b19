"""Spans: what is a `traceparent`, what goes on from where, and that nothing is there for who does not ask for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import pytest

from rise import tracing
from rise.clock import epoch_ms
from rise.copies.record import decode_task, encode_task
from rise.envelope import (
    Call,
    DeliveryKey,
    Head,
    LaneKey,
    Order,
    Progress,
    Status,
    Task,
    TaskType,
    decode_head,
    encode_head,
    forgotten_head,
    task_id_of,
)
from rise.ledger.kept import read_call
from rise.ledger.port import traced
from rise.queue.port import NewTask
from rise.settings import load_settings
from rise.workflows.turn import Turn

pytestmark = pytest.mark.req("OPS-4")

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
PARENT = f"00-{TRACE}-{SPAN}-01"


class Noted:
    """A tracer that keeps what it is asked for."""

    def __init__(self, here: str | None = None) -> None:
        self.here = here
        self.asked: list[dict[str, Any]] = []

    @contextmanager
    def span(self, name: str, **asked: Any) -> Iterator[tracing.Span]:
        self.asked.append({"name": name, **asked})
        yield tracing._NO_SPAN

    def trace_parent(self) -> str | None:
        return self.here


@pytest.fixture
def tracer() -> Iterable[Noted]:
    noted = Noted()
    tracing.trace_by(noted)
    yield noted
    tracing.trace_by(None)


def head(trace_parent: str | None = None, **fields: Any) -> Head:
    key = DeliveryKey("k")
    given = {} if trace_parent is None else {"traceparent": trace_parent}
    return Head(
        task_id=task_id_of(key), delivery_key=key, channel="http", account="default", source="test",
        lane=LaneKey("l"), order=Order(0, 0), accepted_at_ms=0, request_id="r", trace_id="r", idempotency_key="i",
        telemetry=given, **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("header", "is_one"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{SPAN}-00", True),
        (f"01-{TRACE}-{SPAN}-01-of-a-later-version", True),
        (f"00-{TRACE}-{SPAN}-01-more", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{TRACE[1:]}-{SPAN}-01", False),
        (f" {PARENT}", False),
        (f"{PARENT}\n", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_a_traceparent_is_read_as_w3c_has_it_and_what_is_none_is_ignored(header: str, is_one: bool) -> None:
    for given in (header, header.encode()):
        assert tracing.read_trace_parent(given) == (header if is_one else None)
    assert (tracing.parts_of(header) is not None) == is_one


def test_a_try_goes_on_from_the_acceptance_of_its_message(tracer: Noted) -> None:
    with tracing.span_of(head(PARENT), "claim", links=[head(PARENT), head()]):
        pass
    [asked] = tracer.asked
    assert (asked["parent"], asked["links"]) == (PARENT, [PARENT]), "a burst's others are linked, if they have a trace"


def test_within_a_span_of_this_process_work_goes_on_from_that(tracer: Noted) -> None:
    tracer.here = "00-aa-bb-01"
    with tracing.span_of(head(PARENT), "run"):
        pass
    assert tracer.asked[0]["parent"] == "00-aa-bb-01"


def test_what_fires_at_its_moment_is_linked_and_begins_anew(tracer: Noted) -> None:
    with tracing.span_of(head(PARENT, task_type=TaskType.FOLLOW_UP), "claim"):
        pass
    assert (tracer.asked[0]["parent"], tracer.asked[0]["links"]) == (None, [PARENT])


def test_a_record_of_a_former_version_has_no_trace_and_is_read(tracer: Noted) -> None:
    former = decode_head(encode_head(head()))
    assert former.trace_parent is None
    with tracing.span_of(former, "claim"):
        pass
    assert tracer.asked[0]["parent"] is None
    call, unreadable = read_call(b'{"method":"sendMessage","params":{"text":"hi"},"text":"hi"}')
    assert (call, unreadable) == (Call("sendMessage", {"text": "hi"}, "hi"), None)
    assert decode_task(encode_task(NewTask(head(PARENT), b"{}"))).head.trace_parent == PARENT, "in every store"
    assert forgotten_head(head(PARENT)).trace_parent is None


@pytest.mark.parametrize("odd", [7, None, ["x"], {}])
def test_what_stands_there_and_is_no_text_is_none(odd: Any) -> None:
    assert msgspec.structs.replace(head(), telemetry={"traceparent": odd}).trace_parent is None


def test_a_reply_goes_on_from_whatever_means_it_and_else_from_its_message(tracer: Noted) -> None:
    call = Call("sendMessage", {"text": "hi"}, "hi")
    assert traced(call, head()) is call
    assert traced(call, head(PARENT)).trace_parent == PARENT
    tracer.here = "00-aa-bb-01"
    assert traced(call, head(PARENT)).trace_parent == "00-aa-bb-01"


class Nothing:
    """Where no step was kept."""

    async def save_step(self, step: str, value: bytes) -> bytes:
        return value

    async def download(self, file_id: str) -> bytes:
        raise FileNotFoundError(file_id)


@pytest.mark.parametrize(
    ("function", "shown"),
    [(epoch_ms, "rise.clock.epoch_ms"), (str, "builtins.str"), (str.upper, "str.upper"), (partial(str), None)],
)
async def test_a_step_shows_what_it_calls_and_not_its_name_which_may_hold_what_a_person_wrote(
    tracer: Noted, function: Callable[..., Any], shown: str | None
) -> None:
    turn = Turn(Task(head(), b"{}", Progress(status=Status.PROCESSING)), Nothing(), steps={}, history=[], now_ms=0)
    await turn.step("look up Anna", function, MOMENT if function is epoch_ms else "a")
    [asked] = tracer.asked
    assert (asked["name"], asked["attributes"]) == ("step", {"code.function.name": shown})


def test_without_the_setting_nothing_of_it_is_imported() -> None:
    looked = "import sys, rise.runtime.serving, rise.api.server, rise.console.app; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", looked], capture_output=True, check=True, text=True).stdout
    assert "rise.tracing" in imported
    # Of OpenTelemetry's interfaces more, if they are there: libraries of ours look for them.
    assert "rise.connections.otlp" not in imported
    assert "opentelemetry.exporter" not in imported


@pytest.mark.parametrize(
    "endpoint", ["collector:4318", "ftp://collector", "http://", "http://c:4318/?key=1", "https://ann:secret@c:4318"]
)
def test_an_endpoint_that_is_none_is_refused_with_its_remedy(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = load_settings().model_copy(update={"otlp_endpoint": endpoint}).problems()
    [problem] = [one for one in problems if "RISE_OTLP_ENDPOINT" in one]
    assert "secret@" not in problem
