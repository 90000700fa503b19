"""Everything that can be configured, read once at start. The only place that reads the environment, or sets it.

Refuses: a combination that cannot work, or that would lose messages, with all its problems at once, each with its
remedy. A name that is no setting changes nothing and is told (`unknown_names`). `docs/settings.md` is made from this
file and a test compares.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rise.envelope import TaskType, clean_text
from rise.errors import SettingsInvalid
from rise.reachable import read_allowed
from rise.tokens import TOKEN_CHARS_MIN, as_digest, digest_of, is_spoilt_digest

SECONDS_MAX: Final = 10 * 365 * 86400
"""Ten years. Infinity could be neither waited for nor written down."""

TELEGRAM_API_HOST: Final = "api.telegram.org"
TELEGRAM_WAITS_SECONDS: Final = 60.0
"""After this it gives a delivery up and repeats it, whatever we would still have answered."""
WORKER_STALL_SECONDS_MIN: Final = 3.0
"""Three of the worker's beats. With less, a healthy worker is killed between two, and its messages take the blame."""
RETRY_MAX_MAX: Final = 100
RETRY_JITTER: Final = 0.2
"""So much longer than configured the pause before a retry may be, as a part of it."""

Seconds = Annotated[float, Field(gt=0, le=SECONDS_MAX)]
Rate = Annotated[float, Field(ge=0.001, le=1_000_000)]

CHANNELS: Final = ("http", "telegram", "webchat")
TOKEN_ROLES: Final = ("viewer", "operator", "admin")
_RETRIED: Final = frozenset((*CHANNELS, *TaskType)) - {TaskType.CHANNEL_TEST, TaskType.FOLLOW_UP}

_PREFIX: Final = "RISE_"
_ENV_FILE: Final = ".env"
_OF_OTHERS: Final = ("RISE_TEST_", "RISE_RABBITMQ_PASSWORD")
"""What tests read, and `deploy/compose.yml`."""

_PLACE: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
"""Host and port, as Temporal's clients take them."""
_TEMPORAL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

_SPOILT_DIGEST: Final = (
    "looks like a digest and is none: write sha256: and the 64 hexadecimal digits in lower case, as `rise tokens new` "
    "prints them, also for a token that looks like a digest"
)


class Settings(BaseSettings):
    """Environment variables with the prefix `RISE_`, or the same names in a file `.env`."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=_ENV_FILE, env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    # where and how it listens
    data_dir: Path = Field(Path(".rise"), description="The one directory that holds everything.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    public_url: str | None = Field(
        None, description="Where the world reaches this server, as `https://…`; needed for webhooks."
    )
    log: Literal["json", "console"] = Field("console", description="Form of the log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="From this level up.")
    otlp_endpoint: str | None = Field(
        None,
        description="Where traces go: a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`. Needs "
        "the extra `tracing`; what it asks for beside (headers, certificates) is set as OpenTelemetry has it, by "
        "`OTEL_EXPORTER_OTLP_HEADERS` and the like. Unset: nothing is traced.",
    )
    trace_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="So many of the traces that begin here are kept, 1 being all. Whoever calls with a `traceparent` "
        "has decided for those that go on here.",
    )

    # who may
    admin_token: SecretStr | None = Field(
        None,
        description="Token of the first admin, or its digest as in RISE_TOKENS; made and kept in "
        "`$RISE_DATA_DIR/admin-token` when unset.",
    )
    tokens: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        repr=False,
        description="Further tokens, `name:role:token` separated by spaces; roles: viewer, operator, admin. In the "
        "place of a token its digest will do, `sha256:` and 64 hexadecimal digits: `rise tokens new` makes both.",
    )
    secret_key: SecretStr | None = Field(
        None,
        description="Signs sessions, seals and derives secrets; made and kept in `$RISE_DATA_DIR/secret-key` when "
        "unset. With RISE_MONGODB_URL, set it to the same on all hosts.",
    )
    secret_key_former: SecretStr | None = Field(
        None,
        description="The secret key until now: what it sealed can still be read. `rise secrets rotate` seals it with "
        "RISE_SECRET_KEY; then unset this.",
    )
    rate_per_source: Rate = Field(
        50.0,
        description="Requests per second an address may make without credentials: in the web chat, to sign in to the "
        "console, with wrong tokens, with forged updates, each counted by itself; bursts of ten times that. It may "
        "have as many of the web chat's streams open, at least 8. Behind a proxy all come from its address: set what "
        "all of them may do together, and let the proxy bound each.",
    )

    # the bot's code
    app: str | None = Field(None, description="Your workflows: a file (`my_bot.py`) or a module (`pkg.module`).")
    run_seconds: Seconds = Field(300.0, description="How long one run of a workflow may take.")
    worker_concurrency: int = Field(32, ge=1, le=10_000, description="Chats a worker serves at once, per channel.")
    worker_concurrency_for: Annotated[dict[str, Annotated[int, Field(ge=1, le=10_000)]], NoDecode] = Field(
        default_factory=dict,
        description="RISE_WORKER_CONCURRENCY for a channel, or for what is bound to one account of it, such as "
        "`http=8 telegram=64 telegram:123456=4`, separated by spaces. A chat that waits for a place of its account "
        "keeps that of its channel.",
    )
    worker_stall_seconds: Seconds = Field(
        30.0,
        description="A worker process whose event loop is blocked for longer is killed and started anew; "
        f"at least {WORKER_STALL_SECONDS_MIN:g}.",
    )
    history_turns: int = Field(20, ge=0, le=50, description="Turns of a chat's history given to a workflow.")

    # what stages of workflows may use
    llm_base_url: str | None = Field(
        None,
        description="Language model of `prompt` stages: where an OpenAI-compatible server is, such as "
        "`https://api.openai.com/v1`. Needs the extra `llm`.",
    )
    llm_api_key: SecretStr | None = Field(None, description="Its key, where it wants one.")
    llm_model: str | None = Field(None, description="Its model, where a stage names none.")
    llm_seconds: Seconds = Field(120.0, description="No answer is waited for longer, whatever its stage allows.")
    http_stage_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts, addresses and networks that `http` stages and callbacks may call although they are not "
        "public, such as `intranet.example 10.1.0.0/16`, separated by spaces.",
    )
    callback_secret: SecretStr | None = Field(
        None,
        description="Signs what is posted to a `callbackUrl` as alerts are signed: HMAC-SHA256 over "
        "`X-Rise-Timestamp`, a full stop and the body. Unset: nobody may ask for a callback.",
    )

    # keeping and retrying
    min_copies: int | None = Field(
        None,
        ge=1,
        le=3,
        description="Stores that must hold a message before 2xx, of journal, Redis and RabbitMQ. Unset: 2 with "
        "RISE_RABBITMQ_URL, otherwise 1.",
    )
    journal_dir: Path | None = Field(
        None,
        description="Where the journal of open messages lies, with RISE_REDIS_URL; best a disk of its own. "
        "Unset: RISE_DATA_DIR.",
    )
    publish_seconds: Seconds = Field(3.0, description="How long RabbitMQ may take to confirm a message, per try.")
    accept_seconds: Seconds = Field(
        3.0,
        description="How long an acceptance may take before it is answered 503; "
        f"less than {TELEGRAM_WAITS_SECONDS:g}, Telegram waits no longer.",
    )
    claim_seconds: Annotated[float, Field(ge=0.5, le=SECONDS_MAX)] = Field(
        30.0, description="How long a silent worker keeps its chats before another takes over."
    )
    retry_seconds: Annotated[tuple[Seconds, ...], NoDecode] = Field(
        (15.0, 60.0, 180.0),
        description="Pauses before the first, second, … retry, ± 20 %, separated by commas; each, and its 20 %, "
        "within RISE_LANE_BLOCK_SECONDS_MAX.",
    )
    retry_max: int = Field(3, ge=0, le=RETRY_MAX_MAX, description="Retries after the first try.")
    retry_seconds_for: Annotated[dict[str, tuple[Seconds, ...]], NoDecode] = Field(
        default_factory=dict,
        description="RISE_RETRY_SECONDS for a channel or a type of task, such as `telegram=5,30 message.send=10`, "
        "separated by spaces. The type (`workflow.execute`, `message.send`) goes before the channel.",
    )
    retry_max_for: Annotated[dict[str, Annotated[int, Field(ge=0, le=RETRY_MAX_MAX)]], NoDecode] = Field(
        default_factory=dict, description="RISE_RETRY_MAX in the same way, such as `http=0 message.send=5`."
    )
    lane_block_seconds_max: Seconds = Field(
        600.0, description="A failing message holds up its chat no longer than this, then it is suspended."
    )
    resume_per_second: Rate = Field(
        50.0, description="How fast suspended messages are resumed when a workflow appears."
    )
    keep_finished_days: Annotated[float, Field(ge=8, le=SECONDS_MAX / 86400)] = Field(
        30.0, description="How long finished messages are kept; longer than delivery keys are remembered (7 days)."
    )
    keep_raw_days: Annotated[float, Field(gt=0, le=SECONDS_MAX / 86400)] | None = Field(
        None,
        description="How long the bytes are kept that a finished message came as, and the results of its steps; it "
        "cannot run again afterwards. Unset: as long as the message.",
    )
    keep_history_days: Annotated[float, Field(gt=0, le=SECONDS_MAX / 86400)] | None = Field(
        None,
        description="How long a chat's history is kept, turn by turn; never more than its last 50. Unset: for good.",
    )
    binding_look_seconds: Seconds = Field(
        60.0, description="How often it is found out how well each binding serves: its platform is asked then."
    )
    binding_test_seconds: Annotated[float, Field(ge=0, le=SECONDS_MAX)] = Field(
        300.0,
        description="How often a message that nobody sees goes the whole way of each account, to find out whether it "
        "ends; 0: never.",
    )
    suspended_alert_count: int = Field(100, ge=1, description="So many suspended messages raise an alert.")
    suspended_alert_hours: Annotated[float, Field(gt=0, le=SECONDS_MAX / 3600)] = Field(
        24.0, description="One suspended for so long raises an alert."
    )
    stop_seconds: Seconds = Field(
        20.0, description="How long a stop waits for running workflows; for calls that are out at least 35 s, too."
    )
    late_after_seconds: Annotated[float, Field(ge=0, le=SECONDS_MAX)] = Field(
        30.0, description='After this a person is told "running late"; 0 never tells.'
    )

    # when it is too much, and who is told
    pipeline_stalled_seconds: Seconds = Field(
        120.0, description="When the oldest message that should be moving has waited so long, that is an alert."
    )
    backlog_warn: int = Field(10_000, ge=0, description="So many messages on their way raise an alert; 0: never.")
    backlog_max: int = Field(
        100_000, ge=0, description="With more messages on their way, RISE_OVERLOAD says what happens; 0: no limit."
    )
    overload: Literal["refuse", "queue-only"] = Field(
        "refuse",
        description='Over RISE_BACKLOG_MAX: answer 503 "busy", or accept all the same and pause the workers while '
        "that many answers wait for their platform.",
    )
    disk_free_warn_mb: int = Field(
        512, ge=0, description="With fewer megabytes free, or a tenth of the disk if that is less, an alert is raised."
    )
    disk_free_min_mb: int = Field(
        64,
        ge=0,
        description="With fewer megabytes free, or a twentieth of the disk if that is less, new messages are "
        'answered 503 "busy".',
    )
    alert_webhook_url: SecretStr | None = Field(
        None, description="Where alerts are posted, signed with RISE_ALERT_WEBHOOK_SECRET."
    )
    alert_webhook_secret: SecretStr | None = Field(
        None, description="Signs alerts: HMAC-SHA256 over `X-Rise-Timestamp`, a full stop and the body."
    )
    alert_telegram_chat: str | None = Field(
        None, description="Number or @name of the chat in which the default bot tells of alerts."
    )
    alert_quiet_seconds: Seconds = Field(
        300.0, description="An alert that comes and goes is told of once in this time; the log has them all."
    )

    # what is said when there is no answer
    workflow_missing_message: str = Field(
        "Your message is saved. It will be answered as soon as this bot is set up.",
        description="Said once to a chat whose channel has no workflow.",
    )
    maintenance_message: str = Field(
        "This bot is being worked on. Your message is saved.",
        description="Said once to a chat whose binding's kill switch is on.",
    )
    late_message: str = Field("Got it, running late. The answer will come.", description="Said when late.")
    failed_message: str = Field(
        "Sorry, your message could not be answered. A person has been told.",
        description="Said when an answer could not be given.",
    )

    # Telegram
    telegram_token: SecretStr | None = Field(None, description="Token of the default bot.")
    telegram_secret: SecretStr | None = Field(
        None, description="Webhook secret; derived from the secret key when unset."
    )
    telegram_api_base: str = Field(f"https://{TELEGRAM_API_HOST}", description="Bot API server.")
    telegram_mode: Literal["webhook", "polling", "off"] | None = Field(
        None, description="Unset: webhook if RISE_PUBLIC_URL is set, else polling."
    )
    telegram_rate_chat: Rate = Field(1.0, description="Messages per second to one chat.")
    telegram_rate_group_minute: Rate = Field(20.0, description="Messages per minute to one group.")
    telegram_rate_bot: Rate = Field(30.0, description="Messages per second of one bot.")
    telegram_unknown: Literal["resend_marked", "resend", "hold"] = Field(
        "resend_marked", description="When nobody can tell whether a message was sent."
    )

    # servers of the full profile
    redis_url: SecretStr | None = Field(
        None, description="Redis hands out the work, `redis://…`; unset: SQLite does. It must not evict (`noeviction`)."
    )
    rabbitmq_url: SecretStr | None = Field(
        None, description="RabbitMQ holds another copy of open messages, `amqp://…`; needs RISE_REDIS_URL."
    )
    mongodb_url: SecretStr | None = Field(
        None,
        description="MongoDB is the ledger, `mongodb://…/rise`; needs RISE_REDIS_URL. Unset: SQLite in RISE_DATA_DIR.",
    )
    temporal_address: str | None = Field(
        None,
        description="Temporal keeps the time of follow-ups, and carries on what is bound with `engine: temporal`; "
        "`host:port`, needs the extra `temporal`. Unset: the queue keeps time, and nothing is bound to it.",
    )
    temporal_namespace: str = Field("default", description="Its namespace, which must be there.")
    temporal_task_queue: str = Field(
        "rise",
        description="Its task queue, and what its workflows are named after: another one for each installation that "
        "shares the namespace. Conversations have a second one, of this name with `.conversations` behind it.",
    )
    temporal_api_key: SecretStr | None = Field(None, description="Its API key, where it wants one. Turns TLS on.")
    temporal_tls: bool | None = Field(None, description="Whether it is reached by TLS. Unset: if there is an API key.")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_what_is_no_text(cls, value: Any) -> Any:
        """What is no text, or ends early in a path, fails much later and far from here."""
        if isinstance(value, str) and ("\0" in value or clean_text(value) != value):
            raise ValueError("it holds what is not UTF-8, or a NUL")
        return value

    @field_validator("retry_seconds", mode="before")
    @classmethod
    def _split_numbers(cls, value: Any) -> Any:
        return tuple(float(part) for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("http_stage_allow", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("http_stage_allow", mode="after")
    @classmethod
    def _refuse_what_is_no_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        read_allowed(value)
        return value

    @field_validator("retry_seconds_for", mode="before")
    @classmethod
    def _split_numbers_by_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {name: cls._split_numbers(numbers) for name, numbers in _named(value).items()}

    @field_validator("retry_max_for", "worker_concurrency_for", mode="before")
    @classmethod
    def _split_by_name(cls, value: Any) -> Any:
        return _named(value) if isinstance(value, str) else value

    @field_validator("retry_seconds_for", "retry_max_for", mode="after")
    @classmethod
    def _refuse_unknown_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        _refuse_names_beside(_RETRIED, value)
        return value

    @field_validator("worker_concurrency_for", mode="after")
    @classmethod
    def _refuse_unknown_channels(cls, value: dict[str, int]) -> dict[str, int]:
        _refuse_names_beside(CHANNELS, [name.partition(":")[0] for name in value])
        return value

    @field_validator("tokens", mode="before")
    @classmethod
    def _split_tokens(cls, value: Any) -> Any:
        """`name:role:token` → {token: "name:role"}."""
        if not isinstance(value, str):
            return value
        tokens: dict[str, str] = {}
        for at, part in enumerate(value.split(), start=1):
            name, _, following = part.partition(":")
            role, _, token = following.partition(":")
            # None of it is repeated: in another order, any of the three is the token.
            if not name or role not in TOKEN_ROLES:
                raise ValueError(f"number {at} is not name:role:token with the role viewer, operator or admin")
            if is_spoilt_digest(token):
                raise ValueError(f"number {at} {_SPOILT_DIGEST}")
            # Also if one of them is given as the digest: both would be let in by the same token.
            if as_digest(token) in map(as_digest, tokens):
                raise ValueError(f"number {at} has the token of another: whose it is could not be told")
            tokens[token] = f"{name}:{role}"
        return tokens

    @property
    def telegram_is_polling(self) -> bool:
        return self.telegram_token is not None and self.effective_telegram_mode == "polling"

    @property
    def effective_telegram_mode(self) -> Literal["webhook", "polling", "off"]:
        return self.telegram_mode or ("webhook" if self.public_url else "polling")

    @property
    def asks_telegram_itself(self) -> bool:
        """And no Bot API server of one's own: such a one delivers to http:// as well."""
        return (
            _is_web_address(self.telegram_api_base) and urlsplit(self.telegram_api_base).hostname == TELEGRAM_API_HOST
        )

    def secrets(self) -> Iterator[str]:
        """All that must not be seen anywhere, also by itself: of what leads to a server, the password."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                yield from _secrets_in(value.get_secret_value())
        yield from self.tokens
        yield from _secrets_for_the_collector()

    def problems(self) -> list[str]:
        """Combinations that would not work or would lose messages, each with its remedy."""
        return (
            self._copies_problems()
            + self._temporal_problems()
            + self._keeping_problems()
            + self._working_problems()
            + self._overload_problems()
            + self._alert_problems()
            + self._telegram_problems()
            + self._model_problems()
            + self._tracing_problems()
            + self._access_problems()
        )

    @property
    def stores(self) -> tuple[str, ...]:
        """Those that can hold an open message."""
        if self.redis_url is None:
            return ("journal",)
        return ("journal", "redis") if self.rabbitmq_url is None else ("journal", "redis", "rabbitmq")

    @property
    def copies_min(self) -> int:
        """W: so many of them must hold it before it is promised."""
        return self.min_copies or max(1, len(self.stores) - 1)

    def _copies_problems(self) -> list[str]:
        found = []
        for name, url, schemes in (
            ("RISE_REDIS_URL", self.redis_url, ("redis", "rediss", "unix")),
            ("RISE_RABBITMQ_URL", self.rabbitmq_url, ("amqp", "amqps")),
            ("RISE_MONGODB_URL", self.mongodb_url, ("mongodb", "mongodb+srv")),
        ):
            if url is not None and url.get_secret_value().partition("://")[0] not in schemes:
                found.append(f"{name} must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}.")
        if self.rabbitmq_url is not None and self.redis_url is None:
            found.append(
                "RISE_RABBITMQ_URL is set without RISE_REDIS_URL: nothing would hand the work out. "
                "Set RISE_REDIS_URL, or unset RISE_RABBITMQ_URL to run embedded."
            )
        elif self.copies_min > len(self.stores):
            found.append(
                f"RISE_MIN_COPIES is {self.min_copies}, but there are {len(self.stores)} stores for a message "
                f"({', '.join(self.stores)}): nothing would ever be accepted. Set it to {len(self.stores)} or less, or "
                "leave it out."
            )
        if self.mongodb_url is not None and self.redis_url is None:
            found.append(
                "RISE_MONGODB_URL is set without RISE_REDIS_URL: without servers, queue and ledger are one file. "
                "Set RISE_REDIS_URL, or unset RISE_MONGODB_URL to run embedded."
            )
        if self.journal_dir is not None and self.redis_url is None:
            found.append(
                "RISE_JOURNAL_DIR is set without RISE_REDIS_URL: on one machine without servers everything lies in "
                "RISE_DATA_DIR. Set RISE_REDIS_URL, or unset it."
            )
        return found

    def _temporal_problems(self) -> list[str]:
        if self.temporal_address is None:
            named = ("temporal_namespace", "temporal_task_queue", "temporal_api_key", "temporal_tls")
            return [
                f"RISE_{name.upper()} is set without RISE_TEMPORAL_ADDRESS: nobody would be asked. Set "
                f"RISE_TEMPORAL_ADDRESS, or unset RISE_{name.upper()}."
                for name in named
                if getattr(self, name) != type(self).model_fields[name].default
            ]
        found = []
        place = _PLACE.fullmatch(self.temporal_address)
        if place is None or not 0 < int(place[2]) < 65536:
            found.append(
                "RISE_TEMPORAL_ADDRESS must be host:port and nothing else, such as 127.0.0.1:7233. Whether TLS is "
                "spoken there, RISE_TEMPORAL_TLS says."
            )
        for name, value in (
            ("RISE_TEMPORAL_NAMESPACE", self.temporal_namespace),
            ("RISE_TEMPORAL_TASK_QUEUE", self.temporal_task_queue),
        ):
            if not _TEMPORAL_NAME.fullmatch(value):
                found.append(f"{name} must be up to 200 of A-Z a-z 0-9 . _ -, and begin with a letter or digit.")
        key = self.temporal_api_key.get_secret_value() if self.temporal_api_key else ""
        if not (key.isascii() and key.isprintable()) or key != key.strip():
            found.append("RISE_TEMPORAL_API_KEY holds what no header can. Copy it again, without blanks around it.")
        if key and self.temporal_tls is False:
            found.append(
                "RISE_TEMPORAL_API_KEY is set with RISE_TEMPORAL_TLS=false: everybody on the way could read the key. "
                "Unset RISE_TEMPORAL_TLS, or the key."
            )
        return found

    def _keeping_problems(self) -> list[str]:
        if self.keep_raw_days is None or self.keep_raw_days <= self.keep_finished_days:
            return []
        return [
            f"RISE_KEEP_RAW_DAYS is {self.keep_raw_days:g}, but the messages themselves are forgotten after "
            f"{self.keep_finished_days:g} (RISE_KEEP_FINISHED_DAYS). Set it to {self.keep_finished_days:g} or less, or "
            "unset it to keep the bytes as long as the messages."
        ]

    def _overload_problems(self) -> list[str]:
        found = []
        if 0 < self.backlog_max <= self.backlog_warn and "backlog_warn" in self.model_fields_set:
            found.append(
                f"RISE_BACKLOG_WARN is {self.backlog_warn}, but from {self.backlog_max} on (RISE_BACKLOG_MAX) it is "
                "too late for a warning. Set RISE_BACKLOG_WARN to less, or RISE_BACKLOG_MAX to more."
            )
        if 0 < self.disk_free_warn_mb <= self.disk_free_min_mb and "disk_free_warn_mb" in self.model_fields_set:
            found.append(
                f"RISE_DISK_FREE_WARN_MB is {self.disk_free_warn_mb}, but with {self.disk_free_min_mb} "
                "(RISE_DISK_FREE_MIN_MB) messages are refused already. Set RISE_DISK_FREE_WARN_MB to more."
            )
        if self.overload == "queue-only" and not self.backlog_max:
            found.append(
                "RISE_OVERLOAD is queue-only without a RISE_BACKLOG_MAX: it would never begin. Set RISE_BACKLOG_MAX, "
                "or leave RISE_OVERLOAD out."
            )
        return found

    def _alert_problems(self) -> list[str]:
        found = []
        url = self.alert_webhook_url.get_secret_value() if self.alert_webhook_url else None
        secret = self.alert_webhook_secret.get_secret_value() if self.alert_webhook_secret else None
        if url is not None and not _is_safe_to_post_to(url):
            found.append(
                "RISE_ALERT_WEBHOOK_URL must be https:// and a host; http:// only on this machine, because alerts say "
                "what does not work here."
            )
        if url is not None and secret is None:
            found.append(
                "RISE_ALERT_WEBHOOK_URL is set without RISE_ALERT_WEBHOOK_SECRET: anybody could forge an alert. "
                "Set it to 16 characters or more, which the receiver knows too."
            )
        if secret is not None and len(secret) < 16:
            found.append("RISE_ALERT_WEBHOOK_SECRET has fewer than 16 characters; use a longer one.")
        if secret is not None and url is None:
            found.append(
                "RISE_ALERT_WEBHOOK_SECRET is set without RISE_ALERT_WEBHOOK_URL: no alert would go anywhere. "
                "Set the URL, or unset the secret."
            )
        if self.alert_telegram_chat is not None:
            if self.telegram_token is None or self.effective_telegram_mode == "off":
                found.append(
                    "RISE_ALERT_TELEGRAM_CHAT is set without a bot that could write there. Set RISE_TELEGRAM_TOKEN "
                    "(and RISE_TELEGRAM_MODE other than off), or unset it."
                )
            if not _TELEGRAM_CHAT.fullmatch(self.alert_telegram_chat):
                found.append("RISE_ALERT_TELEGRAM_CHAT must be a chat's number, or @ and its public name.")
        return found

    def _working_problems(self) -> list[str]:
        found = []
        if self.accept_seconds >= TELEGRAM_WAITS_SECONDS:
            found.append(
                f"RISE_ACCEPT_SECONDS is {self.accept_seconds:g}, but Telegram hangs up after "
                f"{TELEGRAM_WAITS_SECONDS:g} s and repeats the update: a slow disk's answers would never reach it. "
                f"Set it to less than {TELEGRAM_WAITS_SECONDS:g}, or leave it out."
            )
        if self.worker_stall_seconds < WORKER_STALL_SECONDS_MIN:
            found.append(
                f"RISE_WORKER_STALL_SECONDS is {self.worker_stall_seconds:g}, but a worker says once a second that it "
                "is alive: a healthy one would be killed, and what it runs parked as poison. "
                f"Set it to {WORKER_STALL_SECONDS_MIN:g} or more, or leave it out."
            )
        pauses = {"RISE_RETRY_SECONDS": self.retry_seconds}
        pauses |= {f"RISE_RETRY_SECONDS_FOR {name}": curve for name, curve in self.retry_seconds_for.items()}
        for where, curve in pauses.items():
            longest = max(curve, default=0.0) * (1 + RETRY_JITTER)
            if longest > self.lane_block_seconds_max:
                found.append(
                    f"{where} has a pause of up to {longest:g} s (+{RETRY_JITTER:.0%}), but "
                    f"RISE_LANE_BLOCK_SECONDS_MAX, {self.lane_block_seconds_max:g}, ends the waiting first: the "
                    "message would be suspended instead of retried. "
                    f"Set RISE_LANE_BLOCK_SECONDS_MAX to more than {longest:g}, or shorten the pauses."
                )
        return found

    def _telegram_problems(self) -> list[str]:
        found = []
        token = self.telegram_token.get_secret_value() if self.telegram_token else None
        if token is not None and not is_bot_token(token):
            found.append(
                "RISE_TELEGRAM_TOKEN is not a bot token: that is the bot's number, a colon and letters, as BotFather "
                "gives it. Correct it, or unset it to run without Telegram."
            )
        if self.effective_telegram_mode == "webhook" and token and not self.public_url:
            found.append(
                "RISE_TELEGRAM_MODE is webhook without RISE_PUBLIC_URL: Telegram would not know where to send. "
                "Set RISE_PUBLIC_URL=https://…, or RISE_TELEGRAM_MODE=polling."
            )
        if self.telegram_mode == "polling" and self.public_url and token:
            found.append(
                "RISE_TELEGRAM_MODE is polling with RISE_PUBLIC_URL set: with both ways in, one takes the other's "
                "place. Unset RISE_PUBLIC_URL, or set RISE_TELEGRAM_MODE=webhook (Telegram delivers to https:// only)."
            )
        if self.public_url and not _is_web_address(self.public_url):
            found.append(
                "RISE_PUBLIC_URL must be https:// and a host (http:// only with a Bot API server of one's own)."
            )
        elif self.public_url and self._needs_https() and urlsplit(self.public_url).scheme != "https":
            found.append(
                "RISE_PUBLIC_URL is http://, but Telegram delivers to https:// only: no update would ever come. "
                "Set RISE_PUBLIC_URL=https://…, unset it for polling, or set RISE_TELEGRAM_API_BASE to a Bot API "
                "server of your own, which takes http://."
            )
        if self.public_url and _has_more_than_a_path(self.public_url):
            found.append(
                "RISE_PUBLIC_URL has a ? or a #: paths are added to its end, and Telegram would deliver elsewhere. "
                "Set it to https://, the host and at most a path."
            )
        if not _is_web_address(self.telegram_api_base) or _has_more_than_a_path(self.telegram_api_base):
            found.append(
                "RISE_TELEGRAM_API_BASE must be https:// or http://, a host and at most a path: no call would go "
                "anywhere. Correct it, or unset it for https://api.telegram.org."
            )
        secret = self.telegram_secret.get_secret_value() if self.telegram_secret else None
        if secret is not None and not _is_webhook_secret(secret):
            found.append("RISE_TELEGRAM_SECRET must be 16 to 256 of A-Z a-z 0-9 _ -; unset it to have one derived.")
        return found

    def _needs_https(self) -> bool:
        """Whether Telegram itself is to deliver to RISE_PUBLIC_URL."""
        is_told_where = self.telegram_token is not None and self.effective_telegram_mode == "webhook"
        return is_told_where and self.asks_telegram_itself

    def _model_problems(self) -> list[str]:
        found = []
        if self.llm_base_url is not None and not _is_web_address(self.llm_base_url):
            found.append("RISE_LLM_BASE_URL must be https:// or http:// and a host, such as https://api.openai.com/v1.")
        elif self.llm_base_url is not None and _has_more_than_a_path(self.llm_base_url):
            found.append("RISE_LLM_BASE_URL has a ? or a #: paths are added to its end. Leave only what is before it.")
        if self.llm_base_url is not None and self.llm_model is None:
            found.append(
                "RISE_LLM_BASE_URL is set without RISE_LLM_MODEL: nobody would know which model to ask. Set "
                "RISE_LLM_MODEL to one that the server has, or unset RISE_LLM_BASE_URL to run without prompt stages."
            )
        for name, is_set in (("RISE_LLM_MODEL", self.llm_model), ("RISE_LLM_API_KEY", self.llm_api_key)):
            if is_set is not None and self.llm_base_url is None:
                found.append(
                    f"{name} is set without RISE_LLM_BASE_URL: nothing would be asked. Set RISE_LLM_BASE_URL, for "
                    f"OpenAI to https://api.openai.com/v1, or unset {name}."
                )
        key = self.llm_api_key.get_secret_value() if self.llm_api_key else ""
        if not (key.isascii() and key.isprintable()) or key != key.strip():
            found.append("RISE_LLM_API_KEY holds what no header can. Copy it again, without blanks around it.")
        return found

    def _tracing_problems(self) -> list[str]:
        if self.otlp_endpoint is None:
            return []
        if not _is_web_address(self.otlp_endpoint) or _has_more_than_a_path(self.otlp_endpoint):
            return [
                "RISE_OTLP_ENDPOINT must be https:// or http://, a host and at most a path, such as "
                "http://127.0.0.1:4318: /v1/traces is added to its end. Correct it, or unset it."
            ]
        if "@" in urlsplit(self.otlp_endpoint).netloc:
            return [
                "RISE_OTLP_ENDPOINT holds a name or a password: anybody who sees the settings could read it. Put it "
                "into OTEL_EXPORTER_OTLP_HEADERS."
            ]
        return []

    def _access_problems(self) -> list[str]:
        found = []
        if self.callback_secret is not None and len(self.callback_secret.get_secret_value()) < 16:
            found.append("RISE_CALLBACK_SECRET has fewer than 16 characters; use a longer one, or unset it.")
        if self.callback_secret is not None and self.callback_secret == self.alert_webhook_secret:
            found.append(
                "RISE_CALLBACK_SECRET is RISE_ALERT_WEBHOOK_SECRET too: whoever takes results could forge alerts. "
                "Use another for one of them."
            )
        for name, secret, least in (
            ("RISE_ADMIN_TOKEN", self.admin_token, TOKEN_CHARS_MIN),
            ("RISE_SECRET_KEY", self.secret_key, 32),
        ):
            if secret is not None and len(secret.get_secret_value()) < least:
                found.append(
                    f"{name} has fewer than {least} characters; use a longer one or unset it to have one made."
                )
        admin_token = None if self.admin_token is None else self.admin_token.get_secret_value()
        if admin_token is not None and is_spoilt_digest(admin_token):
            found.append(f"RISE_ADMIN_TOKEN {_SPOILT_DIGEST}.")
        if any(len(token) < TOKEN_CHARS_MIN for token in self.tokens):
            found.append(
                f"RISE_TOKENS holds a token of fewer than {TOKEN_CHARS_MIN} characters; use longer ones, as "
                "`rise tokens new` makes them."
            )
        if admin_token is not None and as_digest(admin_token) in map(as_digest, self.tokens):
            found.append("RISE_TOKENS holds RISE_ADMIN_TOKEN too: whose it is could not be told. Use another there.")
        return found


def token_entry(name: str, role: str, token: str) -> str:
    """What stands in RISE_TOKENS for a token, without it. Raises `SettingsInvalid` if the name cannot stand there."""
    if not name.isprintable() or not name or ":" in name or any(char.isspace() for char in name):
        raise SettingsInvalid(["A token's name is printable, without blanks and colons: those separate RISE_TOKENS."])
    return f"{name}:{role}:{digest_of(token)}"


def load_settings(**overrides: Any) -> Settings:
    """Read the environment. Raises `SettingsInvalid` naming every problem and its remedy."""
    problems: list[str] = []
    try:
        settings = Settings(**overrides)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid([f"The file .env cannot be read: {error}. Mend it, or take it away."]) from error
    except ValidationError as error:
        wrong = {str(problem["loc"][0]): problem["msg"] for problem in error.errors()}
        problems = [_describe(name, message.removeprefix("Value error, ")) for name, message in wrong.items()]
        # With defaults in place of what is wrong, so that the other problems are found in the same go.
        defaults = {name: Settings.model_fields[name].get_default(call_default_factory=True) for name in wrong}
        settings = Settings(**overrides | defaults)
    problems += settings.problems()
    if problems:
        raise SettingsInvalid(problems)
    return settings


def unshared_key(settings: Settings) -> str | None:
    """That other hosts cannot open what this one seals, if that is so. Nothing is refused for it: messages are kept and
    answered all the same."""
    if settings.mongodb_url is None or settings.secret_key is not None:
        return None
    return "RISE_MONGODB_URL is set without RISE_SECRET_KEY: what this host seals, no other can open"


UNSHARED_KEY_REMEDY: Final = (
    "set RISE_SECRET_KEY to the same on all hosts: to what is in the file secret-key of the data directory in which "
    "tokens and secrets were sealed"
)


def unknown_names() -> Iterator[str]:
    """Names in the environment and in `.env` that look like settings and are none, each with what may be meant."""
    known = {name.upper() for name in Settings.model_fields}
    try:
        named = {*os.environ, *dotenv_values(_ENV_FILE)}
    except (OSError, UnicodeDecodeError):
        named = {*os.environ}  # what is wrong with the file, reading the settings says
    for name in sorted(named):
        is_ours = name.upper().startswith(_PREFIX) and not name.upper().startswith(_OF_OTHERS)
        if is_ours and (bare := name.upper().removeprefix(_PREFIX)) not in known:
            meant = get_close_matches(bare, known, n=1)
            yield f"{name} is no setting, it changes nothing" + (f"; is {_PREFIX}{meant[0]} meant?" if meant else "")


def preset(values: Mapping[str, object], *, where_unset: Mapping[str, object]) -> None:
    """Set what this process reads, and every process that it starts: each reads the environment for itself."""
    unset = {name: value for name, value in _as_environment(where_unset).items() if not os.environ.get(name)}
    os.environ |= unset | _as_environment(values)


def environment_of_another(values: Mapping[str, object]) -> dict[str, str]:
    """For a process of another installation: the environment of this one, with these settings and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
    return inherited | _as_environment(values)


def _as_environment(values: Mapping[str, object]) -> dict[str, str]:
    return {_PREFIX + name.upper(): str(value) for name, value in values.items() if value is not None}


def _describe(name: str, message: str) -> str:
    field = Settings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    remedy = "Unset it" if default in (None, {}, ()) else f"Unset it for the default, {default}"
    return f"RISE_{name.upper()}: {message}. {field.description} {remedy}, or correct it (docs/settings.md)."


def _named(text: str) -> dict[str, str]:
    """`name=value name=value` → each by its name."""
    found: dict[str, str] = {}
    for at, part in enumerate(text.split(), start=1):
        name, is_given, value = part.partition("=")
        # Not repeated: it may be a secret that was put in the wrong place.
        if not is_given or name in found:
            raise ValueError(f"number {at} is not name=value, or the second of its name")
        found[name] = value
    return found


def _refuse_names_beside(known: Collection[str], names: Iterable[str]) -> None:
    for at, name in enumerate(names, start=1):
        if name not in known:
            raise ValueError(f"number {at} is for none of {', '.join(sorted(known))}")


def _secrets_in(value: str) -> Iterator[str]:
    """An address of a server without a password is none; one that is posted to may hold a key anywhere."""
    scheme, is_address, _ = value.partition("://")
    try:
        password = urlsplit(value).password if is_address else None
    except ValueError:  # what is no address is refused, and said without it
        is_address, password = "", None
    if password is not None:
        yield from (value, password, unquote(password))
    elif not is_address or scheme in ("http", "https"):
        yield value


def _secrets_for_the_collector() -> Iterator[str]:
    """What OpenTelemetry's SDK reads by itself."""
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        for header in os.environ.get(name, "").split(","):
            # Without a name it is refused, and repeated whole.
            yield unquote(header.partition("=")[2] or header).strip()


def is_bot_token(token: str) -> bool:
    return _BOT_TOKEN.fullmatch(token) is not None


_BOT_TOKEN: Final = re.compile(r"[0-9]{1,20}:[A-Za-z0-9_-]+")
_TELEGRAM_CHAT: Final = re.compile(r"-?[0-9]{1,19}|@[A-Za-z][A-Za-z0-9_]{3,63}", re.ASCII)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def _is_safe_to_post_to(url: str) -> bool:
    if not _is_web_address(url):
        return False
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in _LOOPBACK


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("https", "http") and bool(parts.hostname)


def _has_more_than_a_path(url: str) -> bool:
    return "?" in url or "#" in url


def _is_webhook_secret(secret: str) -> bool:
    return 16 <= len(secret) <= 256 and all(char.isascii() and (char.isalnum() or char in "_-") for char in secret)
