"""Files: kept under an id, downloaded by a path.

Promises: what was uploaded comes back byte for byte; sizes are limited as the real server limits them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from rise.testing.telegram.rules.params import UploadedFile
from rise.testing.telegram.rules.refusals import CallRefused, bad_request

DOWNLOAD_BYTES_MAX: Final = 20 * 1024 * 1024
UPLOAD_BYTES_MAX: Final = 50 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredFile:
    file_id: str
    file_unique_id: str
    file_path: str
    file_name: str
    content_type: str
    content: bytes

    def described(self) -> dict[str, Any]:
        return {
            "file_id": self.file_id,
            "file_unique_id": self.file_unique_id,
            "file_size": len(self.content),
        }


@dataclass(slots=True)
class Files:
    """The files of one bot."""

    bot_id: int
    _by_id: dict[str, StoredFile] = field(default_factory=dict)
    _by_path: dict[str, StoredFile] = field(default_factory=dict)

    def put(self, upload: UploadedFile, *, folder: str = "documents") -> StoredFile:
        if len(upload.content) > UPLOAD_BYTES_MAX:
            raise CallRefused(413, "Request Entity Too Large")
        number = len(self._by_id)
        unique_id = hashlib.sha256(upload.content).hexdigest()[:16]
        stored = StoredFile(
            file_id=f"file-{self.bot_id}-{number}-{unique_id}",
            file_unique_id=unique_id,
            file_path=f"{folder}/file_{number}",
            file_name=upload.file_name,
            content_type=upload.content_type,
            content=upload.content,
        )
        self._by_id[stored.file_id] = stored
        self._by_path[stored.file_path] = stored
        return stored

    def described(self, file_id: str) -> dict[str, Any]:
        """A file that a call names; one from elsewhere is taken on trust."""
        stored = self._by_id.get(file_id)
        if stored is not None:
            return stored.described()
        return {"file_id": file_id, "file_unique_id": hashlib.sha256(file_id.encode()).hexdigest()[:16]}

    def get_file(self, file_id: str) -> dict[str, Any]:
        stored = self._by_id.get(file_id)
        if stored is None:
            raise bad_request("wrong file_id or the file is temporarily unavailable")
        if len(stored.content) > DOWNLOAD_BYTES_MAX:
            raise bad_request("file is too big")
        return {**stored.described(), "file_path": stored.file_path}

    def at_path(self, file_path: str) -> StoredFile | None:
        return self._by_path.get(file_path)
