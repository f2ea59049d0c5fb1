"""Is the mapping right? It is on trial over its first keys, before what it says is believed (``design.md`` 2, "mapping").

A field that differs in more than a fifth of them is mapped wrongly: that is one finding, and neither gaps nor repair. A target
that shows an *older* state of a key proves the mapping right, and one that holds a placeholder was overwritten: only a
``mismatch`` counts against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

KEYS: Final = 1_000  # how many keys the trial lasts
KEYS_MIN: Final = 50  # fewer say nothing of a mapping
SHARE: Final = 0.2


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What the first keys said of one mapping. ``settled``: the stream's counter as it was last taken into account."""

    fingerprint: int
    compared: int = 0
    differing: dict[str, int] = msgspec.field(default_factory=dict)
    settled: int = 0
    passed: bool = False

    @property
    def suspected(self) -> tuple[str, ...]:
        """The fields that differ too often; empty once the mapping has passed."""
        if self.passed or self.compared < KEYS_MIN:
            return ()
        return tuple(sorted(name for name, count in self.differing.items() if count > SHARE * self.compared))

    def streamed(self, fields: Sequence[tuple[str, ...]], *, agreed: int, settled: int) -> Trial:
        """Take keys that were read one by one, and what the stream settled since.

        Args:
            fields: Of each mismatch, the fields that differ.
            agreed: How many others were read on both sides and agreed.
            settled: The stream's counter now; it begins anew where state was lost.
        """
        if self.passed:
            return self
        compared = self.compared + len(fields) + agreed + max(0, settled - self.settled)
        counts = Counter(self.differing)
        for names in fields:
            counts.update(names)
        taken = msgspec.structs.replace(self, compared=compared, differing=dict(counts), settled=settled)
        return msgspec.structs.replace(taken, passed=compared >= KEYS and not taken.suspected)

    def swept(self, differing: Mapping[str, int], *, compared: int, ended: bool, whole: bool) -> Trial:
        """Take what a sweep found so far; the trial begins anew with it.

        Args:
            differing: How often each field differed, in mismatches that were proved.
            compared: How many keys both sides had.
            ended: Whether the sweep has judged all that it found: before, it may raise a suspicion, and proves nothing.
            whole: Whether it read all that there is, so that a smaller number of keys will do.
        """
        if self.passed:
            return self
        taken = msgspec.structs.replace(self, compared=compared, differing=dict(differing))
        enough = ended and compared >= (KEYS_MIN if whole else KEYS)
        return msgspec.structs.replace(taken, passed=enough and not taken.suspected)


def sentence(counts: Mapping[str, int], fields: Sequence[str], compared: int, examples: Mapping[str, str]) -> str:
    """Return what is wrong: how often each field differs, with an example where row data may be shown."""
    said = [
        f"{name} differs in {counts[name]} of {compared} keys" + (f" ({examples[name]})" if name in examples else "")
        for name in fields
    ]
    return f"The mapping looks wrong: {'; '.join(said)}."


REMEDY: Final = "Correct the field's source column, type, scale or rounding; `gapwatch config validate --against-live` shows it."
