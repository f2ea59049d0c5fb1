"""Two sides of a sweep, drawn at random, and what Python's own sets say of them."""

from __future__ import annotations

from hypothesis import strategies as st

from gapwatch.core.keys import KeyCodec
from gapwatch.core.sweep_sets import Array, digests, objects
from gapwatch.model.pipeline import KeyColumn, KeyType

Rows = dict[bytes, bytes]


def codec(*kinds: KeyType) -> KeyCodec:
    return KeyCodec([KeyColumn(path=f"k{number}", type=kind) for number, kind in enumerate(kinds)])


WHOLE_NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)
BEYOND = WHOLE_NUMBERS | st.integers(-(2**70), 2**70)
TEXTS = st.text(max_size=4) | st.text(alphabet="\0\1\xffa", max_size=5) | st.text(alphabet="ab", min_size=14, max_size=70)
CODECS = {
    "int": (codec(KeyType.INT), st.tuples(WHOLE_NUMBERS)),
    "int of any size": (codec(KeyType.INT), st.tuples(BEYOND)),
    "uuid": (codec(KeyType.UUID), st.tuples(st.binary(min_size=16, max_size=16) | st.just(bytes(16)))),
    "objectid": (codec(KeyType.OBJECTID), st.tuples(st.binary(min_size=12, max_size=12) | st.just(bytes(12)))),
    "two ints": (codec(KeyType.INT, KeyType.INT), st.tuples(st.integers(-70_000, 70_000), st.integers(-300, 300))),
    "text": (codec(KeyType.TEXT), st.tuples(TEXTS)),
    "text and int": (codec(KeyType.TEXT, KeyType.INT), st.tuples(TEXTS, st.integers(-300, 300))),
}


@st.composite
def pairs(draw: st.DrawFn, name: str) -> tuple[KeyCodec, Rows, Rows]:
    """Draw two sides that share most keys."""
    made, values = CODECS[name]
    keys = st.builds(made.encode, values)
    contents = st.sampled_from([b"a" * 16, b"b" * 16, b"\0" * 16])
    common = draw(st.dictionaries(keys, contents, max_size=30))
    source, target = draw(st.dictionaries(keys, contents, max_size=5)), draw(st.dictionaries(keys, contents, max_size=5))
    return made, {**common, **source}, {**common, **target}


def expected(source: Rows, target: Rows) -> tuple[set[bytes], set[bytes], set[bytes]]:
    """Return the keys of the source alone, of the target alone, and those whose contents differ."""
    common = source.keys() & target.keys()
    return source.keys() - target.keys(), target.keys() - source.keys(), {key for key in common if source[key] != target[key]}


def equal(one: object, other: object) -> bool:
    return one == other


def as_digests(rows: Rows, keys: list[bytes]) -> Array:
    return digests([rows[key] for key in keys])


def as_objects(rows: Rows, keys: list[bytes]) -> Array:
    return objects([(rows[key], ("1",)) for key in keys])
