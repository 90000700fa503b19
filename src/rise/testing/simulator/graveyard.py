"""How coroutines end that must not run another line.

Python ends a suspended coroutine by throwing `GeneratorExit` into it, and its `finally` blocks run. A process
that was killed has none: what is left of it must go without a trace.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

_SUSPENDABLE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE


class _Buried(BaseException):
    """Ends a frame in the moment in which it would have gone on."""


def bury(suspended: Iterable[Any]) -> None:
    """End coroutines, and whatever they wait in, without running anything of theirs.

    Asynchronous generators are only freed of what they wait in: they end where they are dropped, in silence if
    their loop's finalizer does nothing. A `@contextmanager` is a plain generator, and Python ends it its own way.
    """
    with _nothing_goes_on():
        for outermost in suspended:
            for layer in _layers(outermost):
                _end(layer)


def _layers(outermost: Any) -> list[Any]:
    """What awaits what, innermost first. Layers without a `close` are not frames: futures, mostly."""
    found = []
    layer = outermost
    while layer is not None:
        if hasattr(layer, "close"):
            found.append(layer)
        layer = _awaited_by(layer)
    return found[::-1]


def _awaited_by(layer: Any) -> Any:
    for name in ("cr_await", "ag_await", "gi_yieldfrom"):
        if hasattr(layer, name):
            return getattr(layer, name)
    return None


if sys.version_info >= (3, 12):

    @contextmanager
    def _nothing_goes_on() -> Iterator[None]:
        # A line that is about to run ends its frame instead, the first line of a `finally` too.
        monitoring, tool = sys.monitoring, sys.monitoring.PROFILER_ID
        monitoring.use_tool_id(tool, "rise.testing.simulator")
        monitoring.register_callback(tool, monitoring.events.LINE, _refuse_line)
        monitoring.set_events(tool, monitoring.events.LINE)
        try:
            yield
        finally:
            monitoring.set_events(tool, monitoring.events.NO_EVENTS)
            monitoring.register_callback(tool, monitoring.events.LINE, None)
            monitoring.free_tool_id(tool)

    def _refuse_line(code: CodeType, line: int) -> None:
        if code.co_flags & _SUSPENDABLE:
            raise _Buried

    def _end(layer: Any) -> None:
        try:
            layer.close()
        except _Buried:
            pass

else:

    @contextmanager
    def _nothing_goes_on() -> Iterator[None]:
        tracing = sys.gettrace()
        try:
            yield
        finally:
            sys.settrace(tracing)

    def _refuse_call(frame: FrameType, event: str, argument: Any) -> None:
        # Being resumed is a call, to a tracer; and a frame whose call fails is left at once, without unwinding.
        if frame.f_code.co_flags & _SUSPENDABLE:
            raise _Buried

    def _end(layer: Any) -> None:
        sys.settrace(_refuse_call)  # anew for each: a tracer that raises is removed
        try:
            layer.close()
        except _Buried:
            pass
