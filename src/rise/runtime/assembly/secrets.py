"""What nobody may read but the parts of this process.

Promises: they are kept out of the log from here on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rise.channels.telegram import bot_id_of
from rise.runtime.directory import DataDirectory, derived_secret
from rise.settings import Settings
from rise.telemetry import keep_out_of_logs


@dataclass(frozen=True, slots=True)
class Secrets:
    """What was configured, or made and kept in the data directory."""

    admin_token: str = field(repr=False)
    secret_key: str = field(repr=False)
    telegram_webhook: str | None = field(repr=False)


def build_secrets(settings: Settings, directory: DataDirectory) -> Secrets:
    admin = settings.admin_token.get_secret_value() if settings.admin_token else directory.kept_secret("admin-token")
    key = settings.secret_key.get_secret_value() if settings.secret_key else directory.kept_secret("secret-key")
    token = settings.telegram_token.get_secret_value() if settings.telegram_token else None
    webhook = settings.telegram_secret.get_secret_value() if settings.telegram_secret else None
    if webhook is None and token is not None:
        webhook = webhook_secret(key, bot_id_of(token))
    # All of them in every process: what a workflow reads in its environment it may say in an error.
    keep_out_of_logs([admin, key, webhook, *settings.secrets()])
    return Secrets(admin_token=admin, secret_key=key, telegram_webhook=webhook)


def webhook_secret(key: str, account: str) -> str:
    secret = derived_secret(key, f"telegram-webhook:{account}")
    keep_out_of_logs([secret])
    return secret
