"""`rise audit`, `rise doctor`: is everything accounted for, and is everything well?

Both say it with their exit code too; what to do is said, and done by a person.

Refuses: to mend anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rise.cli.opening import AsJson, DataDir, in_house, read_settings
from rise.cli.printing import plain, problem_found, progress, say, show, show_json, show_pairs, show_table

if TYPE_CHECKING:
    from rise.runtime.assembly.house import House
    from rise.runtime.audit import AuditReport
    from rise.runtime.doctor import Finding


def register(app: typer.Typer) -> None:
    app.command("audit")(audit)
    app.command("doctor")(doctor)


def audit(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Account for every accepted message; exit code 1 if one is nowhere."""

    async def work(house: House) -> AuditReport:
        from rise.runtime.audit import Audit

        with progress("joining receipts with tasks") as told:
            return await Audit(
                queue=house.queue,
                ledger=house.ledger,
                keep_finished_seconds=house.settings.keep_finished_days * 86400,
                telegram=house.channels.telegram,
                copies=None if house.stores.full is None else house.stores.full.shown,
            ).run(told)

    report = in_house(data_dir, work)
    if as_json:
        show_json(report.shown())
    else:
        _show_report(report)
    if not report.is_clean:
        raise problem_found()


def _show_report(report: AuditReport) -> None:
    from rise.clock import from_epoch_ms, iso
    from rise.runtime.audit import Fate

    show_pairs(
        [("accepted", report.receipts)]
        + [(f"  {fate}", count) for fate, count in report.fates.items() if count or fate is not Fate.FORGOTTEN]
        + [("duplicate", f"{report.repeats} repeated deliveries, answered with the first")]
    )
    if report.unaccounted:
        show_table(
            "UNACCOUNTED",
            ("task", "key", "received", "what is known"),
            [
                (lost.task_id, lost.delivery_key, iso(from_epoch_ms(lost.received_at_ms)), lost.detail)
                for lost in report.unaccounted
            ],
        )
    if report.notices:
        show_table(
            "worth a look",
            ("what", "where", "more"),
            [(notice.kind, notice.subject, notice.detail) for notice in report.notices],
        )
    if report.notices_omitted:
        say(f"… and {report.notices_omitted} more notices")
    if report.is_clean:
        say("Everything is accounted for.", style="green")
    else:
        count = report.fates[Fate.UNACCOUNTED]
        say(
            f"{count} accepted messages are nowhere. Keep the directory as it is; restore them from a backup,",
            style="red",
        )
        say("or from the sender's side with `rise replay FILE.jsonl --channel telegram`.", style="red")


def doctor(
    probe: Annotated[
        str | None, typer.Option("--probe", metavar="NAME", help="Only this check or capability, now.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What is configured, what is there, what works, and what to do about the rest; exit code 1 on a failure."""
    from rise.clock import SystemClock
    from rise.runtime.doctor import Doctor, Level
    from rise.runtime.processes import run

    examination = Doctor(read_settings(data_dir), SystemClock())

    async def work() -> list[Finding]:
        if probe is not None:
            found = await examination.probe(probe)
            return _shown(found, as_json)
        found = []
        async for finding in examination.examine():
            found += _shown([finding], as_json)
        return found

    findings = run(work())
    if as_json:
        show_json({"findings": findings, "ok": all(finding.level is not Level.FAIL for finding in findings)})
    if any(finding.level is Level.FAIL for finding in findings):
        raise problem_found()


def _shown(findings: list[Finding], as_json: bool) -> list[Finding]:
    """As soon as they are known: some checks take their time."""
    for finding in findings:
        if not as_json:
            show(plain(f"{finding.level:<5}").append(f"{finding.name:<20} ").append_text(plain(finding.detail)))
            if finding.remedy:
                show(plain(f"{'':<5} {'':<19} → {finding.remedy}"))
    return findings
