# Kafka Connect with Debezium and MongoDB's own sink, each archive checked against the same hash as in the embedded parts.
FROM maven:3.9.11-eclipse-temurin-21 AS plugins
WORKDIR /plugins
COPY app/gapwatch/embedded/resources/jars.lock /jars.lock
RUN set -eu; \
    grep '^plugin ' /jars.lock | while read -r _ artifact sha256; do \
      mvn --batch-mode --quiet dependency:copy -Dartifact="$artifact" -DoutputDirectory=/fetched; \
      file="$(ls /fetched)"; \
      echo "$sha256  /fetched/$file" | sha256sum --check --strict -; \
      case "$file" in \
        *.tar.gz) tar --extract --gzip --file "/fetched/$file" ;; \
        *) mkdir "${file%.jar}" && cp "/fetched/$file" "${file%.jar}/" ;; \
      esac; \
      rm "/fetched/$file"; \
    done

FROM apache/kafka:4.3.1
COPY --from=plugins /plugins /opt/connect/plugins
COPY deploy/docker/connect.properties /opt/connect/connect.properties
EXPOSE 8083
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/kafka/bin/connect-distributed.sh", "/opt/connect/connect.properties"]
