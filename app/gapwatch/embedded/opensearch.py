"""An OpenSearch node: the server's own main class, its jars and four of its modules, no security plug-in.

A node without security takes part in nothing but loopback. Others of the same cluster are processes of their own, so that one of
them can be killed: they hold data only, and the first one alone is the cluster's manager.
"""

from __future__ import annotations

import json
import urllib.request
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from gapwatch.embedded import cache as downloads
from gapwatch.embedded.machine import class_archive, compilers, java_program
from gapwatch.embedded.parts import Part
from gapwatch.embedded.ports import Port
from gapwatch.embedded.process import Watchdog

JAVA_LEAST = 21
HEAP = ("-Xms256m", "-Xmx512m")
# The native library is needed for nothing here, and without it the server does not refuse to run as root.
WITHOUT_NATIVES = ("-Djna.noclasspath=true", "-Djna.nosys=true", "-Djna.boot.library.path=/nonexistent")
MAIN = "org.opensearch.bootstrap.OpenSearch"


class OpenSearchPart(Part):
    """One node. With ``member_of`` a further one of that node's cluster."""

    name = "opensearch"

    def __init__(
        self,
        directory: Path,
        watchdog: Watchdog,
        say: downloads.Say,
        *,
        name: str = "opensearch",
        member_of: OpenSearchPart | None = None,
    ) -> None:
        self.name = name
        self._manager = member_of or self
        super().__init__(directory, watchdog, say)
        self._ports.append(Port())
        self.transport_port = self._ports[1].number

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def repository(self) -> Path:
        """Where snapshots may be kept (a repository of type ``fs``): one place for all nodes of a cluster."""
        return self._manager.directory / "snapshots"

    def launch(self) -> None:
        home = downloads.opensearch_home(self._say)
        config = self.directory / "config"
        config.mkdir(exist_ok=True)
        (config / "opensearch.yml").write_text("".join(f"{name}: {json.dumps(v)}\n" for name, v in self._settings(home).items()))
        with as_file(files("gapwatch.embedded") / "resources" / "opensearch-log4j2.properties") as logging:
            (config / "log4j2.properties").write_text(logging.read_text())
        where = (f"-Dopensearch.path.home={home}", f"-Dopensearch.path.conf={config}", "-Dopensearch.distribution.type=tar")
        options = (*HEAP, *compilers(), *WITHOUT_NATIVES, "-Dlog4j2.disable.jmx=true", "--enable-native-access=ALL-UNNAMED")
        java = java_program(self._say, least=JAVA_LEAST, what="OpenSearch")
        options = (*options, *class_archive(java, "opensearch", home))
        self._spawn([java, *options, *where, "-cp", f"{home / 'lib'}/*", MAIN])

    def ready(self) -> bool:
        """Say whether the node has joined its cluster, and every shard has its primary."""
        if not self._listens():
            return False
        try:
            health = self.get("/_cluster/health?timeout=1s&wait_for_status=yellow")
            joined = self.get("/_nodes/_local?filter_path=nodes.*.name")["nodes"].values()
        except OSError:  # not up, or no manager yet
            return False
        return not health["timed_out"] and any(node["name"] == self.name for node in joined)

    def get(self, path: str) -> Any:
        """Return what the node answers, as JSON. Raises OSError when it does not answer, or not with a success."""
        with urllib.request.urlopen(self.url + path, timeout=5) as response:
            return json.loads(response.read())

    def _settings(self, home: Path) -> dict[str, object]:
        manages = self._manager is self
        return {
            "cluster.name": f"gapwatch-{self._manager.port}",
            "cluster.initial_cluster_manager_nodes": [self._manager.name],
            "node.name": self.name,
            "node.roles": ["cluster_manager", "data", "ingest"] if manages else ["data", "ingest"],
            "discovery.seed_hosts": [f"{self.host}:{self._manager.transport_port}"],
            "network.host": self.host,
            "http.port": self.port,
            "transport.port": self.transport_port,
            "path.data": str(self.directory / "data"),
            "path.logs": str(self.directory / "logs"),
            "path.repo": [str(self.repository)],
            "cluster.routing.allocation.disk.threshold_enabled": False,  # a machine with a full disk may still run tests
            "cluster.fault_detection.follower_check.interval": "1s",
            "cluster.fault_detection.follower_check.timeout": "1s",
        }
