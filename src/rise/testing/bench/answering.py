"""How a contender that answers requests stands there: on the same server program as all others, saying its port."""

from __future__ import annotations

from typing import Any

import uvicorn


async def serve(app: Any) -> None:
    """On uvicorn with no access log, until SIGTERM."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            say_ready(self.servers[0].sockets[0].getsockname()[1])

    config = uvicorn.Config(
        app, port=0, lifespan="off", access_log=False, log_level="error", date_header=False, server_header=False
    )
    await Server(config).serve()


def say_ready(port: int) -> None:
    print(f"ready {port}", flush=True)
