"""The ``_seq_no`` tail of an index: the rule by which it misses nothing that is still there, without the requests.

A round, for each shard: (1) take C, the primary's global checkpoint; (2) a refresh that begins after that; (3) read the documents
with ``last < _seq_no <= C`` from the primary, ascending; (4) ``last`` becomes C, never the greatest number seen. Up to C every
write is done and will survive a change of the primary; the refresh makes them visible; above C a lower number may still come.

What a round cannot show: deletions, and versions that were overwritten before the refresh. Positions are those of one index,
by its uuid, and of one history of each shard: an index that is created anew counts from 0, and one that is restored in place
keeps its uuid and gives out the same numbers once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from gapwatch.errors import HistoryLost

NOTHING = -1  # the number before the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one round reads of one shard: ``after < _seq_no <= through``."""

    shard: int
    after: int
    through: int


class _Token(msgspec.Struct, frozen=True):
    uuid: str
    round: int
    shards: dict[int, int]
    histories: dict[int, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Up to where each shard of one index was read. ``round`` numbers the rounds; it rises with our clock, in milliseconds.

    ``histories``: the uuid of each shard's history, as far as known; positions stored by older releases lack them.
    """

    uuid: str
    round: int
    shards: Mapping[int, int] = field(default_factory=dict)
    histories: Mapping[int, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return msgspec.json.encode(_Token(self.uuid, self.round, dict(self.shards), dict(self.histories)))

    @classmethod
    def decode(cls, token: bytes) -> Position:
        """Raises HistoryLost where the token is none of ours."""
        try:
            found = msgspec.json.decode(token, type=_Token)
        except msgspec.DecodeError as error:
            raise HistoryLost(
                "The stored position is none of a _seq_no tail.", remedy="A sweep covers what was missed."
            ) from error
        return cls(uuid=found.uuid, round=found.round, shards=found.shards, histories=found.histories)

    def must_be(self, uuid: str, name: str) -> None:
        """Raises HistoryLost where the index is another one: nobody can say what was in it in between."""
        if uuid != self.uuid:
            raise HistoryLost(
                f"The index {name} was created anew, or its alias leads to another one.",
                remedy="A sweep covers it; reading begins anew by itself.",
            )

    def continued(self, histories: Mapping[int, str], name: str) -> Position:
        """Return the position with the histories that the shards have now.

        Raises HistoryLost where one has another than it had: a snapshot was restored over the index, or an old copy was forced
        to be its primary. Numbers that were read then stand for other writes now.
        """
        if any(self.histories.get(shard, history) != history for shard, history in histories.items()):
            raise HistoryLost(
                f"The index {name} was set back: a snapshot was restored over it, or an old copy was made its primary.",
                remedy="A sweep covers it; reading begins anew by itself.",
            )
        return replace(self, histories=dict(histories))

    def begin(self, now_ms: int) -> Position:
        """Return the position of a new round, whose number is higher than that of any round before."""
        return replace(self, round=max(now_ms, self.round + 1))

    def windows(self, checkpoints: Mapping[int, int]) -> Sequence[Window]:
        """Return what is to be read, given each primary's global checkpoint as it was before the refresh."""
        return [
            Window(shard=shard, after=self.shards.get(shard, NOTHING), through=through)
            for shard, through in sorted(checkpoints.items())
            if through > self.shards.get(shard, NOTHING)
        ]

    def read(self, shard: int, through: int) -> Position:
        """Return the position after everything up to ``through`` of a window was read."""
        assert through >= self.shards.get(shard, NOTHING), "a tail never goes back"
        return replace(self, shards={**self.shards, shard: through})
