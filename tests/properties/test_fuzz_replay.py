"""What `rise replay` and `rise restore` are given: read as it is, or refused in words for who is at the keyboard."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import ANY_TEXT, bytes_held, damaged, tried

from rise.channels.telegram import read_update
from rise.cli.replay import _in_epoch_ms, _moment, read_lines
from rise.envelope import RAW_BYTES_MAX
from rise.errors import Rejected
from rise.runtime.backup import _unpack_archive
from rise.runtime.directory import DATABASE
from rise.testing.clock import ManualClock
from rise.testing.telegram import updates as written

NOW = datetime(2025, 11, 8, tzinfo=UTC)
LINES = st.builds(
    lambda numbers, end: end.join(
        json.dumps({"update_id": number, **written.message(date=1_762_587_012, message_id=1)}).encode()
        for number in numbers
    ),
    st.lists(st.integers(1, 99), max_size=4),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \n", b"\r"]),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "updates.jsonl"


@pytest.mark.req("OPS-1", "ENV-6")
@pytest.mark.failure("B1", "B9", "B10")
@given(LINES | damaged(LINES) | st.binary(max_size=80))
@tried(1000)
def test_every_line_that_holds_something_becomes_an_update_with_its_number(path: Path, content: bytes):
    path.write_bytes(content)
    lines = list(read_lines(path))
    assert [body for _, body in lines] == [line for line in content.split(b"\n") if line.strip()]
    for number, body in lines:
        assert content.split(b"\n")[number - 1] == body
        assert read_update(body, account="7", now=NOW, webhook=False).delivery_key


@pytest.mark.failure("B12")
def test_a_file_without_lines_is_refused_before_it_fills_the_memory(path: Path):
    path.write_bytes(b"x" * (8 * RAW_BYTES_MAX))

    def read() -> None:
        with pytest.raises(typer.BadParameter, match="line 1"):
            list(read_lines(path))

    assert bytes_held(read) < 4 * RAW_BYTES_MAX


SINCE = st.one_of(
    st.builds(
        lambda number, unit: f"{number}{unit}",
        st.integers(0) | st.text("0123456789٣²", max_size=30),
        st.sampled_from("smhdwy"),
    ),
    st.datetimes(timezones=st.none() | st.just(UTC)).map(datetime.isoformat),
    st.sampled_from(["0001-01-01", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00+23:59", "2025-W01-1", "today", ""]),
    ANY_TEXT,
)


@pytest.mark.failure("M9")
@given(SINCE)
@tried(2000)
def test_since_is_a_moment_or_it_is_said_how_to_say_one(since: str):
    try:
        moment = _moment(since)
    except typer.BadParameter as refused:
        assert "say an age" in refused.message
        return
    assert isinstance(_in_epoch_ms(moment, ManualClock()), int)


# --- archives ---------------------------------------------------------------------------------------------------


def archive(*members: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


DATABASE_BYTES = bytes(range(256)) * 40
WHOLE = archive(("rise-backup/rise.db", DATABASE_BYTES), ("rise-backup/admin-token", b"x" * 43))
HOSTILE = [archive((name, b"x")) for name in ("../rise.db", "/etc/rise.db", "a/../../rise.db", "rise.db/", "rise.db\0")]


def unpacked(folder: Path, content: bytes) -> Path | None:
    """Where an archive was unpacked to, if it was taken."""
    source, staging = folder / "copy.tar.gz", folder / "staging"
    source.write_bytes(content)
    staging.mkdir()
    try:
        _unpack_archive(source, staging)
    except Rejected:
        staging = folder / "refused"
    assert {path.name for path in folder.iterdir()} <= {"copy.tar.gz", "staging"}
    return staging if staging.exists() else None


@pytest.mark.failure("M7")
@given(damaged(st.just(WHOLE)) | st.integers(0, 8 * len(WHOLE) - 1).map(lambda bit: flipped(WHOLE, bit)))
@tried(700)
def test_an_archive_of_which_a_bit_has_changed_is_refused_or_gives_back_what_was_in_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
):
    staging = unpacked(tmp_path_factory.mktemp("restore"), content)
    if staging is not None and (staging / DATABASE).exists():
        assert (staging / DATABASE).read_bytes() == DATABASE_BYTES


@pytest.mark.failure("M7")
@given(st.sampled_from(HOSTILE) | st.binary(max_size=60) | st.just(archive(("a/rise.db", b"x"), ("b/rise.db", b"y"))))
@tried(100)
def test_nothing_in_an_archive_says_where_to_write(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    staging = unpacked(tmp_path_factory.mktemp("restore"), content)
    if staging is not None:
        assert {path.name for path in staging.iterdir()} <= {DATABASE}


def flipped(content: bytes, bit: int) -> bytes:
    at = bit // 8
    return content[:at] + bytes([content[at] ^ 1 << bit % 8]) + content[at + 1 :]
