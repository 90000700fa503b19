"""What operators see: structured log events and metrics. Secrets never get this far in the clear."""

from __future__ import annotations

import atexit
import logging
import queue
import re
import sys
import threading
from collections.abc import Iterable, MutableMapping
from typing import Any, Final, TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rise.clock import SystemClock, iso

# No word boundary before it: in the address of every call it follows the word "bot" directly.
_BOT_TOKEN: Final = re.compile(r"(?<!\d)(\d{3,20})(?::|%3[Aa])[A-Za-z0-9_-]{30,}")
_BEARER: Final = re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{8,}")
_SECRET_KEYS: Final = ("token", "secret", "password", "authorization", "api_key", "cookie")
_CONTROL: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_known_secrets: set[str] = set()


def keep_out_of_logs(secrets: Iterable[str | None]) -> None:
    """These strings are masked wherever they would be written from now on."""
    _known_secrets.update(secret for secret in secrets if secret and len(secret) >= 6)


def redact(text: str) -> str:
    """The text without anything that is, or looks like, a credential."""
    for secret in sorted(_known_secrets, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, "***")
    return _BEARER.sub(r"\1***", _BOT_TOKEN.sub(r"\1:***", text))


def printable(text: str) -> str:
    """With control and direction-changing characters escaped, so that a message cannot forge a line."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _clean(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _clean_value(key, value) for key, value in event.items()}


def _clean_value(key: str, value: Any) -> Any:
    if any(part in key.lower() for part in _SECRET_KEYS) and isinstance(value, str | bytes):
        return "***"
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {printable(redact(str(inner))): _clean_value(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean_value(key, item) for item in value]
    if isinstance(value, BaseException):
        value = f"{type(value).__name__}: {value}"
    return printable(redact(value if isinstance(value, str) else repr(value)))


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
        log.log(record.levelno, "library.logged", logger=record.name, message=record.getMessage())


log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


# --- metrics ----------------------------------------------------------------------------------------------

registry = CollectorRegistry()
_BY_ACCOUNT: Final = ("channel", "account")

accepted_total = Counter(
    "rise_accepted_total", "Deliveries written down, duplicates not counted", _BY_ACCOUNT, registry=registry
)
duplicates_total = Counter("rise_duplicates_total", "Deliveries whose key was known", _BY_ACCOUNT, registry=registry)
out_of_order_total = Counter(
    "rise_out_of_order_total",
    "Deliveries that came after a later one of their chat",
    _BY_ACCOUNT,
    registry=registry,
)
late_total = Counter(
    "rise_late_arrivals_total",
    "... of which the later one had been started already",
    _BY_ACCOUNT,
    registry=registry,
)
refused_total = Counter(
    "rise_refused_total", "Deliveries not accepted, by what was said", ("channel", "code"), registry=registry
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
accept_seconds = Histogram(
    "rise_accept_seconds",
    "From the request read to the message durable",
    ("channel",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 3),
    registry=registry,
)
enqueue_to_reply_seconds = Histogram(
    "rise_enqueue_to_reply_seconds",
    "From a message durable to the last of its reply delivered",
    ("channel", "account", "workflow"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
    registry=registry,
)
replies_total = Counter(
    "rise_replies_total",
    "Calls to platforms by how they ended",
    ("channel", "account", "ending"),
    registry=registry,
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
alert_raised = Gauge("rise_alert_raised", "1 while the condition lasts", ("alert",), registry=registry)
log_lines_dropped_total = Counter(
    "rise_log_lines_dropped_total", "Log lines that could not be written", registry=registry
)
worker_restarts_total = Counter(
    "rise_worker_restarts_total",
    "Worker processes that ended and were started again",
    ("cause",),
    registry=registry,
)
