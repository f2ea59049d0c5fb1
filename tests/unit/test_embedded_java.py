"""How a Java is asked to keep its classes for the next start: only as it can, and never with what is not whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from gapwatch.embedded import machine


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a Java that has an archive of its own classes; the cache is the test's."""
    monkeypatch.setenv("GAPWATCH_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "java" / "lib" / "server" / "classes.jsa"
    base.parent.mkdir(parents=True)
    base.touch()
    return str(tmp_path / "java" / "bin" / "java")


def _options(program: str, tmp_path: Path) -> list[str]:
    return list(machine.class_archive(program, "kafka", tmp_path / "libraries"))


@pytest.mark.parametrize(
    ("version", "first"),
    [(11, ""), (17, "-XX:ArchiveClassesAtExit="), (18, "-XX:ArchiveClassesAtExit="), (19, "-XX:+AutoCreateSharedArchive")],
)
def test_a_java_is_asked_for_what_it_can(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, first: str
) -> None:
    monkeypatch.setattr(machine, "java_version", lambda _: version)
    options = _options(program, tmp_path)
    assert bool(options) == bool(first)
    assert "".join(options).startswith(first)


def test_an_archive_is_used_once_it_is_whole(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "java_version", lambda _: 17)
    archive = Path(_options(program, tmp_path)[0].partition("=")[2])
    assert archive.parent.parent == tmp_path / "cache"
    archive.write_bytes(bytes(4_096))  # its writer was killed: the first bytes come last
    assert _options(program, tmp_path)[0] == f"-XX:ArchiveClassesAtExit={archive}"
    archive.write_bytes(b"\xa8\xab\x0b\xf0" + bytes(4_092))
    assert _options(program, tmp_path)[0] == f"-XX:SharedArchiveFile={archive}"


def test_other_libraries_have_another_archive(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "java_version", lambda _: 17)
    assert _options(program, tmp_path) != list(machine.class_archive(program, "kafka", tmp_path / "other"))


def test_a_java_without_classes_of_its_own_goes_without(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's own Java is left as it is; only the one in the cache is given an archive."""
    monkeypatch.setattr(machine, "java_version", lambda _: 21)
    (tmp_path / "java" / "lib" / "server" / "classes.jsa").unlink()
    assert _options(program, tmp_path) == []
