"""Tokens by their digests: what is kept, and compared, of a token that somebody shows.

A token of RISE_TOKENS, or RISE_ADMIN_TOKEN, may stand there as its digest, `sha256:` and 64 hexadecimal digits: whoever
reads the settings can then tell that it is the right one, and cannot show it. That is enough, without salt and rounds,
for what nobody could guess: `rise tokens new` makes such tokens, of 256 bits.

Refuses: what was meant to be a digest and is none, which as a token would let in whoever has read the settings.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

TOKEN_CHARS_MIN: Final = 16

_PREFIX: Final = "sha256:"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MEANT_AS_DIGEST: Final = re.compile(
    r"(sha-?\d[\d_-]*|md5|bcrypt|scrypt|argon2[a-z]*|pbkdf2[a-z0-9_-]*)[:=$]|\$[a-z0-9-]+\$|[0-9a-f]{64}$",
    re.IGNORECASE,
)
"""Also the digits alone: they may as well be a token, and taken for one they would let in who has read them."""


def digest_of(token: str) -> str:
    """Of a token that is shown, whatever it looks like: a digest that is shown is not the token."""
    return _PREFIX + hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def as_digest(kept: str) -> str:
    """Of a token as it stands in the settings, if not as a digest already."""
    return kept if is_digest(kept) else digest_of(kept)


def is_digest(kept: str) -> bool:
    return _DIGEST.fullmatch(kept) is not None


def is_spoilt_digest(kept: str) -> bool:
    """Whether it may have been meant as a digest and is none, or one of another kind."""
    return _MEANT_AS_DIGEST.match(kept) is not None and not is_digest(kept)
