"""Why a server could not be reached: said in words, whatever a client has wrapped around it."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from rise.unreached import why_unreached

KEY = "hidden"


class ClientError(Exception):
    """Of some client, whose words hold the address."""


def wrapped(cause: BaseException) -> ClientError:
    try:
        try:
            raise OSError("All connection attempts failed") from cause
        except OSError as error:
            raise ClientError(f"http://elsewhere/?key={KEY}") from error
    except ClientError as error:
        return error


@pytest.mark.req("OPS-3", "SEC-2")
@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, KEY), "its name is not known"),
        (socket.gaierror(socket.EAI_AGAIN, KEY), "nobody can say now which address it has"),
        (OSError(errno.ECONNREFUSED, KEY), "the connection is refused"),
        (OSError(errno.ECONNRESET, KEY), "the connection was closed before an answer came"),
        (BrokenPipeError(), "the connection was closed before an answer came"),
        (OSError(errno.EHOSTUNREACH, KEY), "no way leads there"),
        (OSError(errno.ETIMEDOUT, KEY), "no answer in time"),
        (TimeoutError(), "no answer in time"),
        (ssl.SSLCertVerificationError(1, KEY), "its certificate is not trusted"),
        (ssl.SSLError(1, KEY), "no secure connection comes about"),
        (ExceptionGroup(KEY, [ConnectionRefusedError(), TimeoutError()]), "the connection is refused"),
    ],
    ids=repr,
)
def test_what_the_system_said_is_found_below_what_clients_wrap_around_it(cause: BaseException, words: str) -> None:
    assert why_unreached(cause) == words
    assert why_unreached(wrapped(cause)) == words


@pytest.mark.req("SEC-2")
def test_what_nobody_knows_is_said_by_its_class_and_its_number_and_never_in_its_words() -> None:
    assert why_unreached(ClientError(KEY)) == "ClientError"
    assert why_unreached(wrapped(OSError(errno.EMFILE, KEY))) == "ClientError (EMFILE)"
