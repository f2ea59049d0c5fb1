"""What is different about a mapping: between the one that digests were made with, and the one that is in force now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gapwatch.core.mapping import FIELD_LAYOUT

SHOWN_MAX: Final = 5


def changes(before: Sequence[Any], after: Sequence[Any]) -> list[str]:
    """Return what changed from one layout (``CompiledMapping.layout``) to another, as parts of a sentence."""
    (version, types, columns, fields, *rules), (new_version, new_types, new_columns, new_fields, *new_rules) = before, after
    found = []
    if version != new_version:
        found.append(f"the canonical form ({version} → {new_version})")
    if [list(types), list(columns)] != [list(new_types), list(new_columns)]:
        found.append(f"the key ({_key(columns, types)} → {_key(new_columns, new_types)})")
    known, now = _by_target(fields), _by_target(new_fields)
    found += [f"field {name} is new" for name in now.keys() - known.keys()]
    found += [f"field {name} is gone" for name in known.keys() - now.keys()]
    for name in known.keys() & now.keys():
        pairs = [(option, known[name].get(option), now[name].get(option)) for option in FIELD_LAYOUT[1:]]
        said = ", ".join(f"{option} {_text(one)} → {_text(other)}" for option, one, other in pairs if one != other)
        if said:
            found.append(f"field {name} ({said})")
    found += _of_rules(rules[0] if rules else {}, new_rules[0] if new_rules else {})
    if not found and list(known) != list(now):
        found.append("the order of the fields")
    return sorted(found)


def shortened(found: Sequence[str]) -> str:
    """Return the first few of the changes as one text."""
    more = f" and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
    return "; ".join(found[:SHOWN_MAX]) + more


def _by_target(fields: Sequence[Sequence[Any]]) -> dict[str, Mapping[str, Any]]:
    return {values[0]: dict(zip(FIELD_LAYOUT, values, strict=False)) for values in fields}


def _of_rules(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return what changed of the rules that say which records count."""
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} ({before.get(name, 'none')} → {after.get(name, 'none')})"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _key(columns: Sequence[str], types: Sequence[str]) -> str:
    return ", ".join(f"{column}: {kind}" for column, kind in zip(columns, types, strict=True))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "none" if value in (None, "") else str(value)
