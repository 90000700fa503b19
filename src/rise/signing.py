"""Signed posts: how a receiver knows that a body is ours, and of now.

`X-Rise-Signature` is `sha256=` and the HMAC-SHA256, in hexadecimal, of `X-Rise-Timestamp`, a full stop and the body;
the receiver compares it, and refuses timestamps that are minutes old. Alerts and callbacks are signed alike.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime

from rise.clock import epoch_ms


def signed_headers(secret: str, body: bytes, now: datetime) -> dict[str, str]:
    """The headers of a post of JSON."""
    timestamp = str(epoch_ms(now) // 1000)
    signature = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "X-Rise-Timestamp": timestamp,
        "X-Rise-Signature": f"sha256={signature}",
    }
