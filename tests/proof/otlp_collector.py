"""A collector that takes traces as OTLP over HTTP, for as long as an `async with` lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from listener import Listener
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from rise.testing.waiting import eventually

AT_ONCE = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
"""For the processes that export: otherwise spans wait for five seconds."""


@dataclass(frozen=True)
class Exported:
    """A span as it came."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first of its trace."""
    kind: int
    failed: bool
    attributes: dict[str, Any]
    linked: list[str]
    """Spans, of any trace."""
    process: str
    pid: int


@dataclass
class Collector(Listener):
    route = ("POST", "/v1/traces")

    bodies: list[bytes] = field(default_factory=list)
    spans: list[Exported] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def until(self, is_whole: Callable[[Trace], Any]) -> Trace:
        """The first trace of which that can be said."""

        def look() -> Trace | None:
            return next((trace for trace in self.traces() if is_whole(trace)), None)

        found: Trace = await eventually(look)
        return found

    def traces(self) -> Iterator[Trace]:
        for trace_id in dict.fromkeys(span.trace_id for span in self.spans):
            yield Trace([span for span in self.spans if span.trace_id == trace_id])

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.spans += _read(ExportTraceServiceRequest.FromString(body))
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


@dataclass(frozen=True)
class Trace:
    spans: list[Exported]

    def has(self, *names: str) -> bool:
        return set(names) <= {span.name for span in self.spans}

    def all(self, name: str) -> list[Exported]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Exported:
        [span] = self.all(name)
        return span

    def parent(self, span: Exported) -> str:
        """What it stands below; empty if that is not among them."""
        return next((other.name for other in self.spans if other.span_id == span.parent_id), "")


def _read(request: ExportTraceServiceRequest) -> Iterator[Exported]:
    for resource in request.resource_spans:
        of_process = _attributes(resource.resource.attributes)
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield Exported(
                name=span.name,
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                kind=span.kind,
                failed=span.status.code == 2,
                attributes=_attributes(span.attributes),
                linked=[link.span_id.hex() for link in span.links],
                process=str(of_process["rise.process"]),
                pid=int(of_process["process.pid"]),
            )


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
