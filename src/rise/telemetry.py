"""What operators see: structured log events and metrics.

Promises: what is known as a secret, or looks like one, is masked before it is written; nothing that came in a message
can forge a line, and only a traceback has several; an object that breaks when it is put into words breaks no log.

Refuses: to hold anybody up. A thread writes the lines; what nobody takes is dropped and counted.
"""

from __future__ import annotations

import atexit
import html
import json
import logging
import math
import queue
import re
import sys
import threading
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Final, TextIO, cast
from urllib.parse import quote, quote_plus

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from rise.clock import SystemClock, iso
from rise.envelope import is_in_digits

# What stands before the bot's number is of no account: in the address of every call the word "bot", and in a text
# that was put together carelessly perhaps more digits.
_BOT_TOKEN: Final = re.compile(r"(?<=\d\d\d)(?::|%3[Aa])[A-Za-z0-9_-]{30,}")
_BEARER: Final = re.compile(r"(?i)(bearer(?:\s|\\[tnr]|%20)+[\\'\"]*)[A-Za-z0-9._~+/=-]{8,}")
_SECRET_KEYS: Final = ("token", "secret", "password", "authorization", "api_key", "cookie")
_CONTROL: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_JSON_IN_PAGES: Final = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&"})
_NESTING_MAX: Final = 8
_TAIL_MIN: Final = 16

_known_secrets: set[str] = set()


def keep_out_of_logs(secrets: Iterable[str | None]) -> None:
    """These strings are masked wherever they would be written from now on, also as objects, JSON, addresses and pages
    spell them; of a bot's token also what follows the bot's number."""
    for secret in secrets:
        if secret and len(secret) >= 6:
            _known_secrets.update(spellings(secret))
            _known_secrets.update(_spellings_of_tail(secret))


def _spellings_of_tail(token: str) -> Iterator[str]:
    """The number is public, the rest alone is the secret. A short one could be any word."""
    number, _, tail = token.partition(":")
    if is_in_digits(number) and len(tail) >= _TAIL_MIN:
        yield from spellings(tail)


def spellings(secret: str) -> Iterator[str]:
    """As it stands by itself, and in objects, JSON, addresses, forms and pages. Not what hides it, as base64 does."""
    yield secret
    for in_json in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        yield from (in_json, in_json.replace("/", r"\/"), in_json.translate(_JSON_IN_PAGES))
    yield from (quote(secret, safe=kept, errors="replace") for kept in ("", "/", "!'()*"))
    yield quote_plus(secret, safe="", errors="replace")
    in_pages = html.escape(secret)
    yield from (
        in_pages,
        html.escape(secret, quote=False),
        in_pages.replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
    )
    # Whether Python escapes a quotation mark depends on what else is in the text.
    for mark in ("'", "\\'"):
        yield mark.join(repr(f'"{part}')[2:-1] for part in secret.split("'"))
        yield mark.join(repr(b'"' + part.encode("utf-8", "replace"))[3:-1] for part in secret.split("'"))


def redact(text: str) -> str:
    """The text without anything that is, or looks like, a credential."""
    for secret in sorted(_known_secrets, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, "***")
    return _BEARER.sub(r"\1***", _BOT_TOKEN.sub(":***", text))


def printable(text: str) -> str:
    """With control and direction-changing characters escaped, so that a message cannot forge a line."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _clean(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _clean_value(key, value) for key, value in event.items()} | _clean_traceback(event)


def _clean_traceback(event: MutableMapping[str, Any]) -> dict[str, str]:
    """Line by line, for people to read. Indented: what an error quotes of a message begins no line of the log."""
    trace = event.get("exception")
    if not isinstance(trace, str):
        return {}
    return {"exception": "\n".join(f"  {printable(line)}" for line in redact(trace).split("\n"))}


def _clean_value(key: str, value: Any, nesting: int = 0) -> Any:
    if _is_plain(value):
        return value
    if any(part in key.lower() for part in _SECRET_KEYS):
        return "***"
    if isinstance(value, dict) and nesting < _NESTING_MAX:
        return {clean(name): _clean_value(in_words(name), item, nesting + 1) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and nesting < _NESTING_MAX:
        return [_clean_value(key, item, nesting + 1) for item in value]
    return clean(value)


def _is_plain(value: Any) -> bool:
    """It is written as it is: it can hold no text, and every reader of JSON can hold it."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)


def clean(value: object) -> str:
    """Anything as text that may be shown: without credentials, on one line."""
    return printable(redact(in_words(value)))


def in_words(value: object) -> str:
    """Anything as text: of an error its class and words, of other objects what they say of themselves."""
    try:
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}"
        return str(value) if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001 - border: what others wrote to describe itself fails; its class is said instead
        return f"{type(value).__name__} (it cannot be put into words)"


def _timestamp(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["timestamp"] = iso(SystemClock().now())
    return event


class _Writer:
    """Hands lines to a thread of its own: a terminal or pipe that does not take them never stops a message.

    What does not fit is dropped and counted; the count is written when lines flow again.
    """

    LINES_MAX: Final = 10_000

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_lines, name="rise-log", daemon=True)
        self._thread.start()
        atexit.register(self._finish)

    def write(self, text: str) -> None:
        if self._lines.qsize() < self.LINES_MAX:
            self._lines.put(text)
        else:
            self._dropped += 1
            log_lines_dropped_total.inc()

    def flush(self) -> None:
        """Nothing to do: the thread flushes when it has written all there is."""

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._file.write(line)
                if self._lines.empty():
                    self._file.flush()
            except (OSError, ValueError):
                log_lines_dropped_total.inc()  # a full disk, or closed: the next line tries again
            if self._dropped and self._lines.empty():
                dropped, self._dropped = self._dropped, 0
                self._lines.put(f'{{"event": "log.dropped", "lines": {dropped}}}\n')

    def _finish(self) -> None:
        self._lines.put(None)
        self._thread.join(timeout=1.0)


def configure_logs(style: str, *, level: str = "info") -> None:
    """`json` for machines, `console` for people. To standard error; a full pipe never blocks a message."""
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=True)
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _timestamp,
            _traceback_to_text,
            _clean,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Writer(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)


def _traceback_to_text(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return structlog.processors.format_exc_info(_, __, event)


class _ToStructlog(logging.Handler):
    """Libraries that log the old way come out in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        # Levels in between are allowed there, and unknown here.
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        log.log(
            level, "library.logged", logger=record.name, message=_message_of(record), exc_info=record.exc_info or None
        )


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - border: a library's mistake in what it logs must not break what it does
        return f"{in_words(record.msg)} {in_words(record.args)}"


log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


# --- metrics ----------------------------------------------------------------------------------------------

registry = CollectorRegistry()
ProcessCollector(registry=registry)
_BY_ACCOUNT: Final = ("channel", "account")
_BY_WORKFLOW: Final = (*_BY_ACCOUNT, "workflow")
"""The workflow that was bound when it came, or nothing. Names that only a caller knows are none: they have no end."""

accepted_total = Counter(
    "rise_accepted_total", "Deliveries written down, duplicates not counted", _BY_WORKFLOW, registry=registry
)
duplicates_total = Counter("rise_duplicates_total", "Deliveries whose key was known", _BY_WORKFLOW, registry=registry)
out_of_order_total = Counter(
    "rise_out_of_order_total",
    "Deliveries that came after a later one of their chat",
    _BY_WORKFLOW,
    registry=registry,
)
late_total = Counter(
    "rise_late_arrivals_total",
    "Deliveries that came after a later one of their chat had been started",
    _BY_WORKFLOW,
    registry=registry,
)
refused_total = Counter(
    "rise_refused_total", "Deliveries not accepted, by what was said", ("channel", "code"), registry=registry
)
credentials_refused_total = Counter(
    "rise_credentials_refused_total", "Tokens and sessions shown that are none, by where", ("door",), registry=registry
)
raw_truncated_total = Counter(
    "rise_raw_truncated_total", "Deliveries too large to be shown whole", _BY_ACCOUNT, registry=registry
)
workflow_pending_total = Counter(
    "rise_workflow_pending_total", "Tasks that found no workflow", _BY_ACCOUNT, registry=registry
)
settled_total = Counter(
    "rise_settled_total",
    "Tasks that ended or were suspended",
    ("channel", "account", "workflow", "ending"),
    registry=registry,
)
copies_failed_total = Counter(
    "rise_copies_failed_total", "Copies that a store did not take at once", ("copy",), registry=registry
)
rabbit_mirror_failed = Counter(
    "rabbit_mirror_failed", "Messages for which the journal stands in for RabbitMQ", registry=registry
)
copies_made_up_total = Counter(
    "rise_copies_made_up_total",
    "Copies made later because a store was away or had lost them",
    ("copy",),
    registry=registry,
)
copies_lacking = Gauge(
    "rise_copies_lacking", "Open messages of which a store has no copy yet", ("copy",), registry=registry
)
accept_seconds = Histogram(
    "rise_accept_seconds",
    "From the request read to the message durable",
    ("channel",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 3, 10, 60),
    registry=registry,
)
enqueue_to_reply_seconds = Histogram(
    "rise_enqueue_to_reply_seconds",
    "From a message durable to the last of its reply delivered",
    ("channel", "account", "workflow"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
    registry=registry,
)
signal_to_query_hit_seconds = Histogram(
    "rise_signal_to_query_hit_seconds",
    "From a message told to its conversation on Temporal to the question that found what came of it",
    _BY_WORKFLOW,
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=registry,
)
replies_total = Counter(
    "rise_replies_total",
    "Calls to platforms by how they ended",
    ("channel", "account", "ending"),
    registry=registry,
)
platform_call_seconds = Histogram(
    "rise_platform_call_seconds",
    "From a call to a platform to how it ended",
    ("channel",),
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=registry,
)
callbacks_given_up_total = Counter(
    "rise_callbacks_given_up_total", "Results that nobody took where they were to be posted", registry=registry
)
capability_available = Gauge(
    "rise_capability_available",
    "1 available, 0.5 degraded, 0 unavailable",
    ("capability",),
    registry=registry,
)
tasks_open = Gauge("rise_tasks_open", "Open tasks by status", ("status",), registry=registry)
oldest_waiting_seconds = Gauge(
    "rise_oldest_waiting_seconds",
    "Age of the oldest work that should be moving",
    ("what",),
    registry=registry,
)
ledger_writes_waiting = Gauge(
    "rise_ledger_writes_waiting", "Writes that wait in Redis until the ledger answers", registry=registry
)
temporal_calls_failed_total = Counter(
    "rise_temporal_calls_failed_total",
    "Calls to Temporal that were not answered, by what was asked and the error's code",
    ("call", "code"),
    registry=registry,
)
temporal_call_seconds = Histogram(
    "rise_temporal_call_seconds",
    "From a call to Temporal to its answer, tries included",
    ("call",),
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5),
    registry=registry,
)
follow_ups_armed = Gauge(
    "rise_follow_ups_armed", "Timers that this process has set and that have not rung", registry=registry
)
follow_up_lag_seconds = Histogram(
    "rise_follow_up_lag_seconds",
    "From a follow-up's moment to its firing, of those whose timer rang",
    buckets=(0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 60, 300),
    registry=registry,
)
temporal_breaker_open = Gauge(
    "rise_temporal_breaker_open", "1 while Temporal is left alone because it has failed too often", registry=registry
)
temporal_worker_up = Gauge("rise_temporal_worker_up", "1 while Temporal's worker is up", registry=registry)
temporal_worker_restarts_total = Counter(
    "rise_temporal_worker_restarts_total",
    "Workers of Temporal's that were built anew",
    ("cause",),
    registry=registry,
)
alert_raised = Gauge("rise_alert_raised", "1 while the condition lasts", ("alert",), registry=registry)
alert_posts_total = Counter(
    "rise_alert_posts_total", "Alerts told, by where and how that ended", ("post", "ending"), registry=registry
)
log_lines_dropped_total = Counter(
    "rise_log_lines_dropped_total", "Log lines that could not be written", registry=registry
)
spans_dropped_total = Counter(
    "rise_spans_dropped_total", "Spans of traces that the collector did not take", registry=registry
)
worker_restarts_total = Counter(
    "rise_worker_restarts_total",
    "Worker processes that ended and were started again",
    ("cause",),
    registry=registry,
)
