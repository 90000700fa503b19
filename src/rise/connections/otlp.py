"""OpenTelemetry: spans of this process, sent to a collector over OTLP/HTTP. The only file that knows its SDK.

Promises: a message never waits for a span. Ended spans are batched in memory and sent by a thread; while the collector
does not take them they are dropped, which is said once, and once more when it does again. A stop waits no longer than
`FLUSH_SECONDS` for what is left. No span costs another: what no encoding has is replaced, and texts are cut to
`TEXT_CHARACTERS_MAX`, because a batch that cannot be encoded, or is too large, is lost as a whole.

Refuses: to record what an error said. Only of what kind it was stands in a span.

What it reads beside our settings, the SDK reads by itself: OTEL_EXPORTER_OTLP_HEADERS, …_CERTIFICATE, …_TIMEOUT and
…_COMPRESSION, OTEL_BSP_*, OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from rise import tracing
from rise.envelope import clean_text
from rise.errors import RiseError
from rise.telemetry import log, spans_dropped_total

FLUSH_SECONDS: Final = 3.0
TEXT_CHARACTERS_MAX: Final = 256
"""Of a span's name and of each of its attributes. Enough for every name and id there is."""
_SERVICE: Final = "rise"
_KINDS: Final = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
}


class OtlpTracing:
    """Exports spans for as long as it runs: a `rise.service.Service` and a `rise.tracing.Tracer`."""

    name = "tracing"

    def __init__(self, endpoint: str, *, ratio: float, process: str, version: str) -> None:
        """`endpoint`: of the collector, such as `http://127.0.0.1:4318`. `ratio`: of traces that begin here. `process`:
        what this one is called among those of its installation. Raises `ValueError` for what the SDK cannot read in the
        environment."""
        self._exporter = _SayingOnce(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces"))
        self._ratio = ratio
        self._process = process
        self._version = version
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer = trace.NoOpTracer()

    async def start(self) -> None:
        # What it has to say of a failed export is said once, below.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        # Not on exit: by then this has stopped, or nothing is to be waited for.
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(self._ratio), resource=self._resource(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(_SERVICE, self._version)
        tracing.trace_by(self)

    async def stop(self) -> None:
        tracing.trace_by(None)
        provider, self._provider = self._provider, None
        if provider is None:
            return
        # In a thread, because the SDK's own limit is half a minute for each batch.
        flushing = threading.Thread(target=provider.shutdown, name="rise-traces", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_SECONDS)

    def _resource(self) -> Resource:
        named = {"service.name": _SERVICE, "service.version": self._version, "rise.process": self._process}
        # Whoever names the service in the environment means it.
        return Resource({**named, "process.pid": os.getpid()}).merge(OTELResourceDetector().detect())

    # --- as a tracer ---

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: tracing.SpanKind,
        parent: str | None,
        links: Iterable[str],
        attributes: tracing.Attributes,
    ) -> Iterator[tracing.Span]:
        remote = None if parent is None else _remote(parent)
        span = self._tracer.start_span(
            _text(name),
            None if remote is None else trace.set_span_in_context(NonRecordingSpan(remote), contexts.Context()),
            _KINDS[kind],
            attributes=_known(attributes),
            links=[trace.Link(linked) for linked in map(_remote, links) if linked is not None],
        )
        ours = _Span(span)
        in_logs = structlog.contextvars.bound_contextvars(trace_id=f"{span.get_span_context().trace_id:032x}")
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False), in_logs:
            try:
                yield ours
            except BaseException as error:  # border: the span says that it failed, and it is passed on
                ours.fail(error.code if isinstance(error, RiseError) else type(error).__name__)
                raise

    def trace_parent(self) -> str | None:
        here = trace.get_current_span().get_span_context()
        return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}" if here.is_valid else None


class _Span:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def note(self, attributes: tracing.Attributes) -> None:
        self._span.set_attributes(_known(attributes))

    def fail(self, kind: str) -> None:
        self._span.set_attribute("error.type", _text(kind))
        self._span.set_status(Status(StatusCode.ERROR))


class _SayingOnce(SpanExporter):
    """That the collector takes nothing is news once, however long it lasts."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed:
            spans_dropped_total.inc(len(spans))
        if failed and not self._is_failing:
            log.warning(
                "tracing.export_failed",
                consequence="spans are dropped until the collector takes them; messages are not held up",
                remedy="see that RISE_OTLP_ENDPOINT leads to an OTLP/HTTP receiver, and OTEL_EXPORTER_OTLP_HEADERS "
                "hold what it asks for",
            )
        elif self._is_failing and not failed:
            log.info("tracing.exported_again")
        self._is_failing = failed
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _known(attributes: tracing.Attributes) -> dict[str, str | int | float | bool]:
    given = {key: value for key, value in attributes.items() if value is not None}
    return {key: _text(value) if isinstance(value, str) else value for key, value in given.items()}


def _text(text: str) -> str:
    return clean_text(text[:TEXT_CHARACTERS_MAX])


def _remote(trace_parent: str) -> SpanContext | None:
    parts = tracing.parts_of(trace_parent)
    if parts is None:
        return None
    trace_id, span_id, flags = parts
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(flags))
