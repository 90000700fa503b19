"""Why a server could not be reached, or gave no answer, in words for people.

Refuses: the words of the error itself: they hold the address, and that may hold a key.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from typing import Final

_HUNG_UP: Final = frozenset({"ServerDisconnectedError", "RemoteProtocolError"})
"""By name: neither aiohttp nor httpx need be there, and the client of models brings an httpx of its own."""
_NO_WAY: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})


def why_unreached(error: BaseException) -> str:
    """By what the system said, however deep a client has wrapped it; else by the error's class."""
    chain = list(_chain(error))
    return next(filter(None, map(_meaning, chain)), None) or _classed(error, chain)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # Of several addresses that were tried, the first speaks for all.
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__


def _meaning(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    if isinstance(error, ssl.SSLError):
        return "no secure connection comes about"
    if isinstance(error, socket.gaierror):
        return "nobody can say now which address it has" if error.errno == socket.EAI_AGAIN else "its name is not known"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused"
    if isinstance(error, ConnectionError) or type(error).__name__ in _HUNG_UP:
        return "the connection was closed before an answer came"
    return "no way leads there" if isinstance(error, OSError) and error.errno in _NO_WAY else None


def _classed(error: BaseException, chain: list[BaseException]) -> str:
    numbers = (one.errno or 0 for one in chain if isinstance(one, OSError))
    name = next((errno.errorcode[number] for number in numbers if number in errno.errorcode), "")
    return f"{type(error).__name__} ({name})" if name else type(error).__name__
