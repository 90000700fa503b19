"""`rise backup`, `rise restore`: the directory, whole, somewhere else and back.

Says what is in it, and what is not: secrets of the environment, and whatever came after the backup. What is promised
and refused is in `rise.runtime.backup`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rise.cli.opening import AsJson, DataDir, read_settings
from rise.cli.printing import progress, say, show_json, show_pairs


def register(app: typer.Typer) -> None:
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(
    target: Annotated[Path, typer.Argument(help="A new directory, or a new file ending in .tar.gz.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy everything, at one moment, while work goes on; checked by reading the copy. Overwrites nothing."""
    from rise.clock import SystemClock
    from rise.runtime.backup import back_up
    from rise.runtime.directory import DataDirectory
    from rise.runtime.processes import run

    settings = read_settings(data_dir)
    with progress("copying the database") as told:
        contents = run(back_up(DataDirectory(settings.data_dir), target, SystemClock(), told))
    if as_json:
        show_json({"target": str(target), "contents": contents})
        return
    say(f"{target} is complete and checked")
    holders = "Redis and the journals" if settings.rabbitmq_url is None else "Redis, the journals and RabbitMQ"
    elsewhere = None if settings.redis_url is None else f"not in it: {holders} have them"
    show_pairs(
        [
            ("files", ", ".join(contents.files)),
            ("size", f"{contents.size_bytes / (1 << 20):.1f} MB"),
            ("open messages", elsewhere or contents.tasks_open),
            ("receipts", contents.receipts),
            ("results", contents.runs),
        ]
    )
    if "secret-key" not in contents.files or "admin-token" not in contents.files:
        say("RISE_ADMIN_TOKEN or RISE_SECRET_KEY come from the environment: keep them too", style="yellow")
    if settings.mongodb_url is not None:
        say("results, history and definitions are in MongoDB: back that up too, with its own tools", style="yellow")


def restore(
    source: Annotated[Path, typer.Argument(help="What `rise backup` made.")],
    force: Annotated[
        bool, typer.Option("--force", help="Move what is there aside first, within the directory; nothing is deleted.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Put a backup back, checked first. Refuses while Rise runs, and where something is, unless --force."""
    from rise.clock import SystemClock
    from rise.runtime.backup import restore as restore_directory
    from rise.runtime.directory import DataDirectory
    from rise.runtime.processes import run

    settings = read_settings(data_dir)
    with progress("unpacking, checking and putting back"):
        restored = run(restore_directory(source, DataDirectory(settings.data_dir), SystemClock(), replaces=force))
    if as_json:
        aside = None if restored.moved_aside is None else str(restored.moved_aside)
        told = {"contents": restored.contents, "movedAside": aside, "repliesInDoubt": restored.replies_in_doubt}
        show_json({"dataDir": str(settings.data_dir), **told})
        return
    say(f"{settings.data_dir} is restored from {source}")
    show_pairs(
        [
            ("open messages", restored.contents.tasks_open),
            ("receipts", restored.contents.receipts),
            ("replies in doubt", restored.replies_in_doubt),
            ("before", restored.moved_aside and f"kept as {restored.moved_aside}"),
        ]
    )
    if restored.replies_in_doubt:
        say(
            f"{restored.replies_in_doubt} replies were to be sent and may have been since: RISE_TELEGRAM_UNKNOWN says "
            "whether they are sent with the mark ↻, as they are, or held for you.",
            style="yellow",
        )
    say(
        "What came in after the backup is not in it; what was open in it runs again, and if it was answered since, the "
        "answer is given again without a mark.",
        style="yellow",
    )
