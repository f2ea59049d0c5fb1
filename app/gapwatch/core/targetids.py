"""The documents that the target has under one key, where the key is not the target's own id; two live ones are a `duplicate`.

Up to ``TARGET_IDS_MAX`` a key. Beyond that the youngest is not kept, and the key is *crowded*: it has to be read, whatever the
stream says of the others, until a verdict is in. Losing what is known here costs a read, or a duplicate that the next sweep
finds, never a verdict.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

import msgspec

from gapwatch.model.stream import Operation

TARGET_IDS_MAX: Final = 8
_TOKEN: Final = Struct("<I4xqq")  # as `core/keystate` has it, at its `TOKEN_AT`
_TOKEN_AT: Final = 8


class TargetId(msgspec.Struct, array_like=True, gc=False):
    """One document. ``born``: the write since which it is there, ``newest``: its last one (both as ``core/keystate`` packs them).

    ``judged``: a verdict was about it, or it is from a snapshot: it is no news that it is there. Dead ones are kept beside live
    ones, so that a repetition does not bring them back.
    """

    born: bytes
    newest: bytes
    live: bool = True
    judged: bool = False


class TargetIds(msgspec.Struct, array_like=True, gc=False):
    """All of one key. ``crowded``: there were more than are kept. ``place``: the order token of the newest write of all."""

    known: dict[bytes, TargetId] = {}
    crowded: bool = False
    place: tuple[int, int, int] | None = None

    def note(self, target_id: bytes, write: bytes, content: bytes) -> None:
        """Take one write of a document; `content` is what it shows by now, as far as that is known."""
        one, token = self.known.get(target_id), _token(write)
        self.place = token if self.place is None else max(self.place, token)
        if write[0] == Operation.DELETE:
            if one is not None:
                one.newest, one.live, one.judged = write, False, False
            if not self.crowded and not any(other.live for other in self.known.values()):
                self.known.clear()
        elif one is not None and one.live:
            one.newest = content
        else:
            self.known[target_id] = TargetId(write, content, True, write[0] == Operation.SNAPSHOT)
            if len(self.known) > TARGET_IDS_MAX:
                self._let_one_go()

    def _let_one_go(self) -> None:
        dead = [(_token(one.newest), name) for name, one in self.known.items() if not one.live]
        if dead:
            del self.known[min(dead)[1]]
            return
        del self.known[max((_token(one.born), name) for name, one in self.known.items())[1]]
        self.crowded = True

    @property
    def live(self) -> list[TargetId]:
        """Return the live ones, the oldest first."""
        return sorted([one for one in self.known.values() if one.live], key=lambda one: _token(one.born))

    @property
    def twin(self) -> bytes | None:
        """Return the write that made a second live document, where no verdict was about it yet."""
        if len(self.known) < 2:
            return None
        live = self.live
        for one in live[1:]:
            if not one.judged:
                return one.born
        if self.crowded:
            return live[-1].born if live else max((one.newest for one in self.known.values()), key=_token)
        return None

    def judge(self, token: tuple[int, int, int]) -> None:
        """Say that a verdict is in on what was there at `token`."""
        self.crowded = False
        for one in self.known.values():
            one.judged = one.judged or _token(one.born) <= token

    @property
    def showing(self) -> bytes | None:
        """Return the newest write of the live documents: what a reader of the target would take for the key's."""
        return max([one.newest for one in self.known.values() if one.live], key=_token, default=None)


def _token(write: bytes) -> tuple[int, int, int]:
    return _TOKEN.unpack_from(write, _TOKEN_AT)
