"""Secrets among the definitions: sealed where they are kept, shown as nothing but whose they are.

The key is made from the installation's secret key, which is not in the database: who has the one alone has nothing.

Promises: sealing the same twice looks different; what was opened here is masked in every log from then on.

Refuses: to say what is in a seal that was made with another key (None).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from rise.envelope import is_in_digits
from rise.telemetry import keep_out_of_logs

_PURPOSE: Final = b"definitions"


class Seal:
    """Seals with the first key, opens with any of them."""

    def __init__(self, key: str, former_keys: Sequence[str] = ()) -> None:
        """`former_keys`: what was sealed with them can be opened, and sealed anew."""
        self._key = _fernet(key)
        self._keys = MultiFernet([self._key, *map(_fernet, former_keys)])

    def close(self, secret: str) -> str:
        keep_out_of_logs([secret])
        return self._keys.encrypt(secret.encode()).decode()

    def open(self, sealed: str | None) -> str | None:
        """None if there is nothing, or it was sealed with a key that is not here."""
        if sealed is None:
            return None
        try:
            secret = self._keys.decrypt(sealed.encode()).decode()
        except InvalidToken:
            return None
        keep_out_of_logs([secret])
        return secret

    def anew(self, sealed: str | None) -> str | None:
        """The same under the first key; None if it is that already, or cannot be opened."""
        try:
            self._key.decrypt((sealed or "").encode())
        except InvalidToken:
            secret = self.open(sealed)
            return None if secret is None else self.close(secret)
        return None


def masked(token: str | None) -> str | None:
    """A bot's token as it may be shown: the number is public."""
    if token is None:
        return None
    number, _, _ = token.partition(":")
    return f"{number}:***" if is_in_digits(number) else "***"


def _fernet(key: str) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(hmac.new(key.encode(), _PURPOSE, hashlib.sha256).digest()))
