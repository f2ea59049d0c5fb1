"""The undo file: what a backfill is about to overwrite or delete, on disk before it is written (``repair.undo``).

One file a run, ``<run id>.jsonl``, readable by its owner alone. Each line is JSON: what is done to a document, and how it stood,
in the store's own JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from gapwatch.core.gaps import rfc3339
from gapwatch.errors import StoreRefused
from gapwatch.model.gap import Run
from gapwatch.ports import Clock, Key, StoredRecord
from gapwatch.roles.stores import PipelineStores

log = structlog.get_logger(__name__)

FILES_MAX: Final = 200  # of one pipeline; the oldest goes when another run begins
REMEDY: Final = "Make the directory writable for the process of role repair, or remove repair.undo."

Overwritten = tuple[Key, StoredRecord | None, bool]  # key, what stands there (None: nothing), whether it is to be deleted


class UndoFile:
    """The file of one run; it is made with the first line."""

    def __init__(self, stores: PipelineStores, run: Run, clock: Clock) -> None:
        self._stores = stores
        self._run = run
        self._clock = clock
        self._path = Path(stores.spec.repair.undo) / stores.spec.id / f"{run.id}.jsonl"

    async def note(self, items: Sequence[Overwritten]) -> None:
        """Return once these lines are on disk; StoreRefused where they cannot be: then nothing may be written."""
        if not items:
            return
        lines = "".join(self._line(*item) for item in items)
        try:
            await asyncio.to_thread(self._append, lines.encode("utf-8", "surrogatepass"))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StoreRefused(f"The undo file {self._path} cannot be written: {reason}.", remedy=REMEDY) from error

    def _line(self, key: Key, document: StoredRecord | None, deleted: bool) -> str:
        head = {
            "at": rfc3339(self._clock.now()),
            "pipeline": self._run.pipeline,
            "run": self._run.id,
            "key": self._stores.codec.fields(key),
            "action": "create" if document is None else "delete" if deleted else "replace",
        }
        kept = "null" if document is None else self._stores.writer.kept(document)  # not parsed: its numbers are exact
        return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "document": {kept}}}\n'

    def _append(self, lines: bytes) -> None:
        folder = self._path.parent
        begins = not self._path.exists()
        if begins:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(folder)
            log.info("undo_file", pipeline=self._run.pipeline, run=self._run.id, path=str(self._path))
        handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if _is_torn(handle):
                lines = b"\n" + lines
            left = memoryview(lines)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if begins:
            for made in (folder, folder.parent):  # else the file itself may be gone after a power cut
                _sync(made)

    def _make_room(self, folder: Path) -> None:
        known = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        for path in known[: max(0, len(known) - FILES_MAX + 1)]:
            path.unlink(missing_ok=True)
            log.warning("undo_file_removed", pipeline=self._run.pipeline, path=str(path), kept=FILES_MAX)


def _is_torn(handle: int) -> bool:
    """Whether a file ends within a line: whoever held the run before us was killed, or the disk was full."""
    size = os.fstat(handle).st_size
    return size > 0 and os.pread(handle, 1, size - 1) != b"\n"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
