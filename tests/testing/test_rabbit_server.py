"""The server that tests of RabbitMQ start."""

from __future__ import annotations

from pathlib import Path

import pytest

from rise.testing.servers import RabbitServer, has_rabbitmq


def processes_of(directory: Path) -> list[str]:
    """Whose surroundings name the directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            surroundings = (process / "environ").read_bytes()
            if str(directory).encode() in surroundings:
                found.append((process / "comm").read_text().strip())
        except OSError:
            pass  # it has ended, or is somebody else's
    return found


@pytest.mark.slow
@pytest.mark.req("TST-3")
def test_it_keeps_what_it_holds_when_killed_and_leaves_no_process_behind(tmp_path: Path):
    if not has_rabbitmq():
        pytest.skip("rabbitmq-server is not installed")
    with RabbitServer(tmp_path) as server:
        server.ctl("add_vhost", "kept")
        server.kill()
        server.start()
        assert "kept" in server.ctl("list_vhosts").split()
        assert "beam.smp" in processes_of(tmp_path)
    while processes_of(tmp_path):
        pass
