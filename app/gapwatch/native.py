"""Finds the compiled hot path (``make native`` builds it), or says why the pure Python twin is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, cast

from gapwatch.core.envelopes import INTERFACE, NativeModule
from gapwatch.errors import ConfigError, ConfigProblem

MODULE: Final = "gapwatch_native"
SWITCH: Final = "GAPWATCH_NATIVE"


@dataclass(frozen=True, slots=True, kw_only=True)
class HotPath:
    """Which hot path is in use. ``misfit``: there is a module, and it cannot be used."""

    module: NativeModule | None
    reason: str
    misfit: bool = False

    @property
    def name(self) -> str:
        return "native" if self.module is not None else "python"


def find(environ: Mapping[str, str], load: Callable[[str], ModuleType] = importlib.import_module) -> HotPath:
    """Return the hot path to use: the module unless ``GAPWATCH_NATIVE=0``, Python where it is not there or does not fit.

    Raises:
        ConfigError: The switch is neither 0 nor 1, or 1 where the module cannot be used.
    """
    wanted = environ.get(SWITCH, "")
    if wanted not in ("", "0", "1"):
        raise _problem(f"{wanted[:20]!r} is neither 0 nor 1.", "Set 0 for pure Python, 1 to insist on the module, or nothing.")
    if wanted == "0":
        return HotPath(module=None, reason=f"{SWITCH}=0")
    found = _found(load)
    if wanted == "1" and found.module is None:
        raise _problem(f"The module cannot be used: {found.reason}.", f"Run `make native`, or unset {SWITCH}.")
    return found


def _found(load: Callable[[str], ModuleType]) -> HotPath:
    try:
        module = cast("Any", load(MODULE))
    except ModuleNotFoundError as error:
        return HotPath(module=None, reason=f"{MODULE} is not installed", misfit=error.name != MODULE)
    except ImportError as error:
        return HotPath(module=None, reason=f"{MODULE} cannot be loaded: {error}", misfit=True)
    interface = getattr(module, "INTERFACE", None)
    if interface != INTERFACE:
        return HotPath(module=None, reason=f"{MODULE} has interface {interface}, not {INTERFACE}", misfit=True)
    return HotPath(module=module, reason=f"{MODULE} {getattr(module, '__version__', '')}".strip())


def _problem(message: str, remedy: str) -> ConfigError:
    return ConfigError([ConfigProblem(SWITCH, message, remedy=remedy)])
