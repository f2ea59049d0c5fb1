"""How match's state lies in the changelog, and how to tell a whole one from a torn one. Pure.

A changelog record is ``[rank, payload]`` under the key ``<partition>/<name>``; its rank is the offset of ``gapwatch.events`` that
the payload contains. The commit marker lists the rank of every record that belongs to it. A record is written once, under a name
that no other life of any worker uses. So a restore knows, whatever order or compaction did: a listed record that is absent or of
another rank was lost (torn), an unlisted one belongs to a checkpoint that did not end, or has been replaced: a leftover.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from gapwatch.errors import ProtocolError

MARKER: Final = "marker"


class _Record(msgspec.Struct, array_like=True, gc=False):
    rank: int
    payload: bytes


class _Marker(msgspec.Struct, array_like=True, gc=False):
    topic_id: str
    listed: dict[str, int]
    payload: bytes


_ENCODER: Final = msgspec.msgpack.Encoder()
_RECORD: Final = msgspec.msgpack.Decoder(_Record)
_MARKER: Final = msgspec.msgpack.Decoder(_Marker)


class StateTorn(Exception):  # noqa: N818 - reads as a state
    """The changelog does not hold what its marker lists. ``names`` are the records in question."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        super().__init__(f"{len(self.names)} records of the state are missing or too old, among them {', '.join(self.names[:3])}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A partition's state as the changelog holds it. ``applied``: the offset that the marker contains; ``leftovers``: names of
    records that are no part of it.
    """

    applied: int
    topic_id: str
    marker: bytes
    records: Mapping[str, bytes]
    leftovers: Sequence[str]


class Journal:
    """Names and ranks of one partition's changelog records."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self._listed: dict[str, int] = {}

    def key(self, name: str) -> bytes:
        return f"{self.partition}/{name}".encode()

    def record(self, name: str, rank: int, payload: bytes) -> tuple[bytes, bytes]:
        """Return changelog key and value of a record that the next marker lists."""
        assert name != MARKER
        self._listed[name] = rank
        return self.key(name), _ENCODER.encode(_Record(rank, payload))

    def removal(self, name: str) -> bytes:
        """Return the changelog key of a record that the next marker lists no more; to be removed after that marker."""
        self._listed.pop(name, None)
        return self.key(name)

    def marker(self, rank: int, payload: bytes, *, topic_id: str) -> tuple[bytes, bytes]:
        """Return changelog key and value of the commit marker."""
        body = _ENCODER.encode(_Marker(topic_id, self._listed, payload))
        return self.key(MARKER), _ENCODER.encode(_Record(rank, body))

    def restore(self, records: Iterable[tuple[bytes, bytes]]) -> Restored | None:
        """Return the state, None where no checkpoint ever ended; raise StateTorn where part of it is gone."""
        found = {name_of(key): _decode(value) for key, value in records}
        head = found.pop(MARKER, None)
        if head is None:
            return None
        try:
            marker = _MARKER.decode(head.payload)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"The state's marker of partition {self.partition} cannot be read: {error}.") from error
        torn = [name for name, rank in marker.listed.items() if name not in found or found[name].rank != rank]
        if torn:
            raise StateTorn(torn)
        self._listed = dict(marker.listed)
        return Restored(
            applied=head.rank,
            topic_id=marker.topic_id,
            marker=marker.payload,
            records={name: found[name].payload for name in marker.listed},
            leftovers=sorted(found.keys() - marker.listed.keys()),
        )


def name_of(key: bytes) -> str:
    return key.partition(b"/")[2].decode()


def rank_of(value: bytes) -> int:
    """Return a changelog value's rank; -1 for one that cannot be read (so that anything readable replaces it)."""
    try:
        return _RECORD.decode(value).rank
    except msgspec.DecodeError:
        return -1


def _decode(value: bytes) -> _Record:
    try:
        return _RECORD.decode(value)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"A record of match's state cannot be read: {error}.") from error
