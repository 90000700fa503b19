"""The way of one message as spans, over all processes that it passes: the port. Whoever exports them is behind it
(`rise.connections.otlp`), and as long as there is nobody, a span is nothing and costs next to nothing.

    accept                      the door, or a run that plans something; its context travels in the envelope
    ├─ keep                     until it is durable
    └─ claim                    one try, in whichever process: `rise.attempt` says which
       ├─ run                   the workflow; on Temporal, as the child of `accept`: see `continued`
       │  ├─ stage, step
       │  └─ chat, GET …        a language model or a site is asked
       ├─ conversation.tell, conversation.ask
       └─ send                  one call to the platform, in the process that sends; its context travels in the outbox

Promises: what is no `traceparent` is none, never an error; a span that fails says of what kind the error was.

Refuses: to hold anything that was written, or a credential: attributes are names, numbers and kinds of errors. What an
error said is in the log, whose lines have the trace's id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Final, Literal, Protocol

from rise.envelope import Head, TaskType

Attributes = Mapping[str, str | int | float | bool | None]
"""What is None is left out."""
SpanKind = Literal["internal", "server", "client", "producer", "consumer"]

_TRACE_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


class Span(Protocol):
    """What is going on."""

    def note(self, attributes: Attributes) -> None: ...

    def fail(self, kind: str) -> None:
        """It has not come to what it was for. `kind`: in a word; what leaves by raising need not be said."""
        ...


class Tracer(Protocol):
    """Whoever exports spans. Must neither wait nor raise."""

    def span(
        self,
        name: str,
        *,
        kind: SpanKind,
        parent: str | None,
        links: Iterable[str],
        attributes: Attributes,
    ) -> AbstractContextManager[Span]:
        """`parent`: as `traceparent` says it; None: the span that this is in, or none."""
        ...

    def trace_parent(self) -> str | None:
        """Of the span that this is in."""
        ...


class _NoSpan:
    """Of nothing that anybody exports."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, attributes: Attributes) -> None:
        return None

    def fail(self, kind: str) -> None:
        return None


_NO_SPAN: Final = _NoSpan()
_tracer: Tracer | None = None


def trace_by(tracer: Tracer | None) -> None:
    """Who exports the spans of this process from now on. Of a process, as its log is: a span has no owner."""
    global _tracer
    _tracer = tracer


def span(
    name: str,
    *,
    kind: SpanKind = "internal",
    parent: str | None = None,
    links: Iterable[str | None] = (),
    attributes: Attributes | None = None,
) -> AbstractContextManager[Span]:
    """Around what is going on. It ends with the `with`, as failed if that is left by an error."""
    if _tracer is None:
        return _NO_SPAN
    known = [link for link in links if link is not None]
    return _tracer.span(name, kind=kind, parent=parent, links=known, attributes=attributes or {})


def span_of(
    head: Head,
    name: str,
    *,
    kind: SpanKind = "internal",
    links: Iterable[Head] = (),
    attributes: Attributes | None = None,
) -> AbstractContextManager[Span]:
    """Around work on a task: within the span that this is in, otherwise going on from where the task was accepted.

    As the child of that, also hours later: all tries of one message are one trace, or nobody sees why its answer came
    late. OpenTelemetry's conventions for messaging allow it for what is processed one message at a time, and ask for
    links where several are: so the messages that follow in a burst are linked. What fires at a moment that was planned,
    perhaps in a year, begins a trace of its own, linked to that in which it was planned: no store keeps a trace open
    for so long.
    """
    if _tracer is None:
        return _NO_SPAN
    parent, linked = _tracer.trace_parent(), [other.trace_parent for other in links]
    if parent is None and head.task_type is TaskType.FOLLOW_UP:
        linked.append(head.trace_parent)
    elif parent is None:
        parent = head.trace_parent
    return span(name, kind=kind, parent=parent, links=linked, attributes={**of_task(head), **(attributes or {})})


def of_task(head: Head) -> Attributes:
    return {
        "rise.task_id": head.task_id,
        "rise.task_type": head.task_type.value,
        "rise.channel": head.channel,
        "rise.account": head.account,
    }


def trace_parent() -> str | None:
    """Of the span that this is in, as it travels. None: nothing is exported here."""
    return None if _tracer is None else _tracer.trace_parent()


def read_trace_parent(header: str | bytes | None) -> str | None:
    """What a `traceparent` header says, if it is one."""
    if not header:
        return None
    text = header if isinstance(header, str) else header.decode("latin-1")
    return text if parts_of(text) is not None else None


def parts_of(trace_parent: str) -> tuple[str, str, int] | None:
    """Trace, span and flags; None if it is no `traceparent` (https://www.w3.org/TR/trace-context)."""
    found = _TRACE_PARENT.fullmatch(trace_parent)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    # Of version 00 nothing follows, of later ones more may; ff is none, and zeros are nobody's.
    if version == "ff" or (version == "00" and more is not None) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return trace_id, span_id, int(flags, 16)
