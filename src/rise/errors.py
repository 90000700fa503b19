"""What can go wrong, said once.

An error carries the decision in its class and fields; nobody decides by its text. `code` is stable and
documented in docs/errors.md; `public_message` may be shown to anybody and never holds a secret.

Refuses: to know any vendor's errors. They are mapped once, where the vendor is spoken to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class RiseError(Exception):
    """Everything Rise raises on purpose."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, public_message: str) -> None:
        super().__init__(public_message)
        self.public_message = public_message
        self.remedy = ""
        """What helps in this case, where that is not what helps against errors of its class."""


# --- at start ---------------------------------------------------------------------------------------------


class SettingsInvalid(RiseError):
    """The configuration would not work or would lose messages. Exit code 2; every problem at once."""

    code = "settings_invalid"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


# --- the caller's fault: answered 4xx, never retried -----------------------------------------------------


class Rejected(RiseError):
    """The request is refused and nothing was written."""

    code = "rejected"
    http_status: ClassVar[int] = 400

    def __init__(self, public_message: str, *, field: str | None = None) -> None:
        super().__init__(public_message)
        self.field = field


class PayloadInvalid(Rejected):
    """The JSON can be read, but a field is missing, wrong or unknown; `field` names it."""

    code = "payload_invalid"
    http_status = 422


class PayloadMalformed(Rejected):
    """Not JSON, or the connection closed before it was complete."""

    code = "payload_malformed"


class PayloadTooLarge(Rejected):
    """The body is over 1 MiB."""

    code = "payload_too_large"
    http_status = 413


class PayloadTooSlow(Rejected):
    """The body did not arrive within its deadline."""

    code = "payload_too_slow"
    http_status = 408


class ContentTypeUnsupported(Rejected):
    """Not JSON by its own word, or compressed."""

    code = "content_type_unsupported"
    http_status = 415


class SignatureMismatch(Rejected):
    """Forged, or a secret that is no longer valid. Says nothing more on purpose."""

    code = "signature_mismatch"
    http_status = 401


class CredentialsMissing(Rejected):
    """No token, or one that is not known."""

    code = "credentials_missing"
    http_status = 401


class RoleInsufficient(Rejected):
    """The token is known, but its role may not do this."""

    code = "role_insufficient"
    http_status = 403


class RateExceeded(Rejected):
    """Too many requests from this source; `Retry-After` says when to come back."""

    code = "rate_exceeded"
    http_status = 429

    def __init__(self, public_message: str, *, retry_after_seconds: int) -> None:
        super().__init__(public_message)
        self.retry_after_seconds = retry_after_seconds


class ChannelUnknown(Rejected):
    """There is no such channel or account here."""

    code = "channel_unknown"
    http_status = 404


class WorkflowUnknown(Rejected):
    """There is no workflow with this id, or none that is published."""

    code = "workflow_unknown"
    http_status = 404


class PromptUnknown(Rejected):
    """There is no prompt with this id."""

    code = "prompt_unknown"
    http_status = 404


class SecretUnknown(Rejected):
    """There is no secret of this name."""

    code = "secret_unknown"
    http_status = 404


class VersionUnknown(Rejected):
    """It never had this version, or it is one of those that are no longer kept."""

    code = "version_unknown"
    http_status = 404


class TaskUnknown(Rejected):
    """There is no such task, or it is past its retention."""

    code = "task_unknown"
    http_status = 404


class KeyReused(Rejected):
    """The same idempotency key came before with another body."""

    code = "idempotency_key_reused"
    http_status = 422


class StateConflict(Rejected):
    """What this is to be done to is not in a state in which it can be."""

    code = "state_conflict"
    http_status = 409


class StageRefused(Rejected):
    """A stage cannot do what it was told, on no other try either: a name without a value, an unexpected answer."""

    code = "stage_refused"
    http_status = 422


class ConversationRefused(Rejected):
    """In its chat's conversation on Temporal a run was refused for what it says; its own words follow."""

    code = "conversation_refused"
    http_status = 422


class AddressForbidden(Rejected):
    """An `http` stage was to call an address that is not public, and not in RISE_HTTP_STAGE_ALLOW."""

    code = "address_forbidden"
    http_status = 422


class ModelUnconfigured(Rejected):
    """A `prompt` stage has no language model to ask. All other stages work without."""

    code = "model_unconfigured"
    http_status = 422

    def __init__(self, public_message: str, *, remedy: str) -> None:
        super().__init__(f"{public_message}: {remedy}")
        self.remedy = remedy


class ModelRefused(Rejected):
    """The language model's server does not take this request: its key, its model or what it says."""

    code = "model_refused"
    http_status = 422


class BindingMissing(Rejected):
    """That workflow is not bound to that account."""

    code = "binding_missing"
    http_status = 409


class RouteTaken(Rejected):
    """Another binding of the account that is on has that chat or command."""

    code = "route_taken"
    http_status = 409


class VersionStale(Rejected):
    """It has been changed since the version that this change was made for."""

    code = "version_stale"
    http_status = 409

    @classmethod
    def of(cls, name: str, version: int) -> VersionStale:
        """`version`: the one that is in force."""
        return cls(f"{name} has been changed meanwhile and is at version {version}: read it again, then change it")


# --- a dependency's fault: retried -----------------------------------------------------------------------


class Unavailable(RiseError):
    """Something Rise needs does not answer. Trying again is right and safe."""

    code = "unavailable"
    retryable = True
    capability: str = "unknown"
    """What is away, by the name that `/healthz` has for it."""
    is_closed: ClassVar[bool] = False
    """Over HTTP it is said as any capability that is closed, `capability_unavailable`, and `capability` says which."""

    def __init__(self, public_message: str, *, retry_after_seconds: int | None = None, remedy: str = "") -> None:
        super().__init__(public_message)
        self.retry_after_seconds = retry_after_seconds
        self.remedy = remedy


class StoreUnavailable(Unavailable):
    """The embedded store cannot be read or written: full, read-only, locked, broken or gone."""

    code = "store_unavailable"
    capability = "disk"  # unless its `Database` is called otherwise
    is_closed = True


class StoreCorrupt(StoreUnavailable):
    """The store answers, but what it holds cannot be trusted. Waiting will not mend it."""

    code = "store_corrupt"


class StoreLocked(RiseError):
    """Another `rise serve` owns this directory."""

    code = "store_locked"


class RestoreUnfinished(StoreLocked):
    """A `rise restore` of this directory was cut off: nothing opens it until it is restored again."""

    code = "restore_unfinished"


class RedisUnavailable(Unavailable):
    """Redis does not answer or takes no writes: gone, loading, full, read-only or in failover."""

    code = "redis_unavailable"
    capability = "redis"
    is_closed = True


class RabbitUnavailable(Unavailable):
    """RabbitMQ does not answer or takes no messages: gone, stopped by an alarm of its own, full, or without a queue."""

    code = "rabbitmq_unavailable"
    capability = "rabbitmq"
    is_closed = True


class RabbitMisconfigured(RabbitUnavailable):
    """A queue or exchange of Rise's is there, but declared otherwise. Waiting will not mend it."""

    code = "rabbitmq_misconfigured"


class MongoUnavailable(Unavailable):
    """MongoDB does not answer or takes no writes: gone, without a primary, or without a majority to confirm."""

    code = "mongodb_unavailable"
    capability = "mongo"
    is_closed = True


class MongoMisconfigured(MongoUnavailable):
    """An index that Rise relies on is there, but is another one. Waiting will not mend it."""

    code = "mongodb_misconfigured"


class LedgerSilent(MongoUnavailable):
    """What was done of a message before is not known: the ledger is away, and what is done is kept until it is back."""

    code = "ledger_silent"


class WrittenByNewer(LedgerSilent):
    """What was done of it waits for the ledger in words of a newer version: a process of that has to write it back."""

    code = "written_by_newer"


class TemporalUnavailable(Unavailable):
    """Temporal does not answer: gone, starting, too busy, or left alone for a while because it has failed so often."""

    code = "temporal_unavailable"
    capability = "temporal"
    is_closed = True


class TemporalSlow(TemporalUnavailable):
    """Temporal does not answer in time, or is asked more than it takes. Three times in a row, and it counts as gone."""

    code = "temporal_slow"


class TemporalMisconfigured(TemporalUnavailable):
    """Temporal answers, but lets Rise in by no name or key, or lacks its namespace. Waiting will not mend it."""

    code = "temporal_misconfigured"


class RedisFull(RedisUnavailable):
    """Redis has no room for more; what is in it can be worked off all the same."""

    code = "redis_full"


class QueueOwed(RedisUnavailable):
    """Redis answers, but earlier messages are brought to it first, so that no chat is answered out of order."""

    code = "queue_owed"


class RedisForeign(RedisUnavailable):
    """This Redis holds the work of another installation: nothing of ours may go into it."""

    code = "redis_foreign"


class CopiesInsufficient(Unavailable):
    """Fewer durable places than RISE_MIN_COPIES hold the message: not promised."""

    code = "copies_insufficient"
    capability = "copies"


class Busy(Unavailable):
    """More is open, or less room is left, than this installation takes on: come back later."""

    code = "busy"
    capability = "admission"


class BindingsUnknown(Unavailable):
    """Which workflow serves what has not been read since the start, and its store does not answer."""

    code = "bindings_unknown"
    capability = "bindings"


class ChannelUnavailable(Unavailable):
    """The platform cannot be reached. `sent_perhaps`: a request may have taken effect all the same."""

    code = "channel_unavailable"
    capability = "channel"

    def __init__(
        self, public_message: str, *, sent_perhaps: bool = False, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(public_message, retry_after_seconds=retry_after_seconds)
        self.sent_perhaps = sent_perhaps


class SiteUnavailable(Unavailable):
    """What an `http` stage calls does not answer, or says that it cannot now."""

    code = "site_unavailable"
    capability = "http"


class ModelUnavailable(Unavailable):
    """The language model does not answer, has no room now, or limits the rate."""

    code = "model_unavailable"
    capability = "llm"


class CapabilityClosed(Unavailable):
    """A capability that this needs is not available now."""

    code = "capability_unavailable"

    def __init__(self, name: str, status: str, detail: str, *, retry_after_seconds: int = 30) -> None:
        super().__init__(f"{name} is {status}: {detail}", retry_after_seconds=retry_after_seconds)
        self.name = name
        self.status = status
        self.detail = detail


class RecordTooLarge(RiseError):
    """What a run came to is more than its ledger keeps of one."""

    code = "record_too_large"


# --- what Temporal answers ---------------------------------------------------------------------------------


class ExecutionUnknown(RiseError):
    """Temporal has no workflow running under this id."""

    code = "execution_unknown"


class ExecutionExists(RiseError):
    """Temporal has, or had, a workflow under this id already."""

    code = "execution_exists"


class ExecutionFailed(RiseError):
    """A workflow of Temporal's has ended with, or answered with, an error of its own; or it takes no such question."""

    code = "execution_failed"


# --- within a run ----------------------------------------------------------------------------------------


class ClaimLost(RiseError):
    """Somebody else works this lane now; whatever the holder still writes changes nothing."""

    code = "claim_lost"


class RungEarly(RiseError):
    """A follow-up's timer has rung, and the queue's clock says that its moment is still to come."""

    code = "rung_early"
    retryable = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"its moment comes in {seconds:.3f} s")
        self.seconds = seconds


class EnvelopeMalformed(RiseError):
    """The stored record cannot be read by this version of Rise."""

    code = "raw_payload_invalid"


class WaitsForDependency(RiseError):
    """Raise it in a workflow when something outside is down or limits the rate: the task waits, no try used."""

    code = "dependency_unavailable"
    retryable = True

    def __init__(self, public_message: str, *, retry_after_seconds: float = 15.0) -> None:
        super().__init__(public_message)
        self.retry_after_seconds = retry_after_seconds


class RunTimedOut(RiseError):
    """The workflow did not return within its time."""

    code = "run_timed_out"
    retryable = True


class StageTimedOut(RunTimedOut):
    """A stage did not end within its time."""

    code = "stage_timed_out"


class ModelAnswerUnusable(RiseError):
    """The language model answered, but with nothing that could be used; another try may do better."""

    code = "model_answer_unusable"
    retryable = True


class ConversationFailed(RiseError):
    """The workflow failed in its chat's conversation on Temporal; its own words follow."""

    code = "conversation_failed"
    retryable = True


class SiteFailed(RiseError):
    """What an `http` stage calls has no address, or answers with an error of its own; that uses up the task's tries."""

    code = "site_failed"
    retryable = True
