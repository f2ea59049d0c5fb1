"""A schema registry: Apicurio's, which speaks Confluent's API too. Its data lie in memory."""

from __future__ import annotations

import urllib.request

from gapwatch.embedded import cache as downloads
from gapwatch.embedded.machine import class_archive, compilers, java_program
from gapwatch.embedded.parts import Part

HEAP = ("-Xms64m", "-Xmx256m")


class SchemaRegistryPart(Part):
    name = "registry"

    @property
    def url(self) -> str:
        """Confluent's API."""
        return f"{self._address}/apis/ccompat/v7"

    @property
    def native_url(self) -> str:
        """Apicurio's own API, which its converters speak."""
        return f"{self._address}/apis/registry/v2"

    def launch(self) -> None:
        home = downloads.schema_registry_home(self._say)
        program = next(home.glob("*-runner.jar"))
        where = (f"-Dquarkus.http.host={self.host}", f"-Dquarkus.http.port={self.port}")
        java = java_program(self._say, what="The schema registry")
        options = (*HEAP, *compilers(), *class_archive(java, "registry", home))
        self._spawn([java, *options, *where, "-Djava.io.tmpdir=" + str(self.directory), "-jar", str(program)])

    def ready(self) -> bool:
        if not self._listens():
            return False
        try:
            with urllib.request.urlopen(f"{self.url}/schemas/types", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def _address(self) -> str:
        return f"http://{self.host}:{self.port}"
