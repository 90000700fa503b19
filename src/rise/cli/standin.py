"""`rise telegram-standin` and `rise model-standin`: a Bot API and a language model of one's own, to try things with.

They keep everything in memory, and call nobody but the webhook that is given.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("telegram-standin")(telegram_standin)
    app.command("model-standin")(model_standin)


def telegram_standin(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = 8081,
    token: Annotated[str | None, typer.Option("--token", help="The bot's token.")] = None,
    time_scale: Annotated[
        float, typer.Option("--time-scale", help="Its clock runs so many times faster than ours.")
    ] = 1.0,
    rates: Annotated[bool, typer.Option("--rates/--no-rates", help="Answer 429 as Telegram does.")] = True,
    any_token: Annotated[bool, typer.Option("--any-token/--only-token", help="Serve whatever bot comes.")] = True,
) -> None:
    """A stand-in for the Telegram Bot API: point RISE_TELEGRAM_API_BASE at it and write to your bot."""
    from rise.testing.telegram.command import run_standin
    from rise.testing.telegram.server import DEFAULT_TOKEN

    standin = run_standin(
        host,
        port,
        token or DEFAULT_TOKEN,
        time_scale=time_scale,
        enforces_rates=rates,
        accepts_any_token=any_token,
        say=lambda text: typer.echo(text),
    )
    _run(standin, f"{host}:{port}")


def model_standin(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = 11434,
) -> None:
    """A stand-in for a language model: point RISE_LLM_BASE_URL at it. It answers with what it was asked.

    It takes every key and every model's name. Its port is that of Ollama, which it stands in for.
    """
    from rise.testing.model_server import run_model_standin

    _run(run_model_standin(host, port, say=lambda text: typer.echo(text)), f"{host}:{port}")


def _run(standin: Coroutine[None, None, None], address: str) -> None:
    from rise.runtime.processes import run

    try:
        run(standin)
    except KeyboardInterrupt:
        return  # the way it is stopped
    except OSError as error:
        raise typer.BadParameter(f"cannot listen on {address}: {error.strerror or error}") from None
