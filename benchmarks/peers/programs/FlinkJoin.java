// Flink SQL: a streaming FULL OUTER JOIN, one slot, hash-map state. Checkpoints and an unbounded read with `follow` only.
// Arguments and output as in answer.py: SERVERS SOURCE TARGET TOTAL DIRECTORY GROUP [follow].
import java.lang.management.ManagementFactory;
import java.math.BigDecimal;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentSkipListSet;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Stream;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.flink.table.annotation.DataTypeHint;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;
import org.apache.flink.table.functions.ScalarFunction;
import org.apache.flink.types.Row;
import org.apache.flink.types.RowKind;
import org.apache.flink.util.CloseableIterator;

public class FlinkJoin {
  static final AtomicLong READ = new AtomicLong();
  static final Set<Integer> MISSING = new ConcurrentSkipListSet<>(), EXTRA = new ConcurrentSkipListSet<>(), WRONG = new ConcurrentSkipListSet<>();

  /** Counts the records that pass, which SQL alone does not tell. */
  public static class Counted extends ScalarFunction {
    public Long eval(Long id) { READ.incrementAndGet(); return id; }
    @Override public boolean isDeterministic() { return false; }
  }

  /** Notes documents that differ where the answer goes nowhere: `collect` cannot be restored from a checkpoint. */
  public static class Noted extends ScalarFunction {
    public Long eval(Long left, Long right) {
      if (left != null && right != null) WRONG.add(left.intValue());
      return left;
    }
    @Override public boolean isDeterministic() { return false; }
  }

  public static class Document extends ScalarFunction {
    static final ObjectMapper JSON = new ObjectMapper();
    static final String FIELDS = "ROW<customer STRING, amount DECIMAL(18,2), status STRING, quantity INT, moment BIGINT, version INT>";
    public @DataTypeHint(FIELDS) Row eval(String text) {
      try {
        JsonNode after = JSON.readTree(text);
        return Row.of(after.get("customer").textValue(), new BigDecimal(after.get("amount").get("$numberDecimal").textValue()),
            after.get("status").textValue(), after.get("quantity").intValue(), after.get("updated_at").get("$date").longValue(),
            after.get("version").intValue());
      } catch (Exception error) { throw new RuntimeException(error); }
    }
  }

  static double cpu() {
    return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime() / 1e9;
  }

  static double peakMib() throws Exception {
    for (String line : Files.readAllLines(Path.of("/proc/self/status")))
      if (line.startsWith("VmHWM:")) return Long.parseLong(line.replaceAll("\\D", "")) / 1024.0;
    return 0;
  }

  static Configuration configuration(String directory, boolean follow) throws Exception {
    Configuration settings = new Configuration();
    settings.setString("parallelism.default", "1");
    settings.setString("taskmanager.memory.managed.size", "256m");
    settings.setString("taskmanager.memory.network.min", "64m");
    settings.setString("state.backend.type", "hashmap");
    settings.setString("pipeline.object-reuse", "true");
    settings.setString("rest.bind-port", "0");
    settings.setString("rest.port", "0");
    if (follow) {
      Path checkpoints = Path.of(directory, "checkpoints");
      settings.setString("execution.checkpointing.interval", "500ms");
      settings.setString("execution.checkpointing.dir", checkpoints.toUri().toString());
      settings.setString("execution.checkpointing.externalized-checkpoint-retention", "RETAIN_ON_CANCELLATION");
      Optional<Path> newest = newest(checkpoints);
      if (newest.isPresent()) settings.setString("execution.state-recovery.path", newest.get().toUri().toString());
    }
    return settings;
  }

  static Optional<Path> newest(Path checkpoints) throws Exception {
    if (!Files.exists(checkpoints)) return Optional.empty();
    try (Stream<Path> found = Files.walk(checkpoints)) {
      return found.filter(path -> path.endsWith("_metadata")).map(Path::getParent)
          .max(Comparator.comparingInt(path -> Integer.parseInt(path.getFileName().toString().replaceAll("\\D", ""))));
    }
  }

  static void tables(TableEnvironment table, String servers, String source, String target, String group, boolean follow) {
    String kafka = " WITH ('connector'='kafka','topic'='%s','properties.bootstrap.servers'='" + servers + "','properties.group.id'='" + group
        + "','scan.startup.mode'='earliest-offset'," + (follow ? "" : "'scan.bounded.mode'='latest-offset',") + "%s)";
    table.executeSql("CREATE TEMPORARY TABLE changes (`after` ROW<id BIGINT, customer STRING, amount DECIMAL(18,2), status STRING, quantity INT,"
        + " updated_at TIMESTAMP_LTZ(3), version INT>)" + String.format(kafka, source, "'format'='json','json.timestamp-format.standard'='ISO-8601'"));
    table.executeSql("CREATE TEMPORARY TABLE documents (id STRING, `after` STRING)" + String.format(kafka, target,
        "'key.format'='json','key.fields'='id','value.format'='json','value.fields-include'='EXCEPT_KEY'"));
    table.executeSql("CREATE TEMPORARY VIEW expected AS SELECT COUNTED(`after`.id) AS id, `after`.customer AS customer, `after`.amount AS amount,"
        + " `after`.status AS status, `after`.quantity AS quantity, `after`.updated_at AS moment, `after`.version AS version FROM changes");
    table.executeSql("CREATE TEMPORARY VIEW observed AS SELECT COUNTED(CAST(id AS BIGINT)) AS id, d.customer AS customer, d.amount AS amount,"
        + " d.status AS status, d.quantity AS quantity, TO_TIMESTAMP_LTZ(d.moment, 3) AS moment, d.version AS version"
        + " FROM (SELECT id, DOCUMENT(`after`) AS d FROM documents)");
  }

  static void note(Row row) {
    Object left = row.getField(0), right = row.getField(1);
    Set<Integer> kind = right == null ? MISSING : left == null ? EXTRA : WRONG;
    int key = ((Long) (left == null ? right : left)).intValue();
    if (row.getKind() == RowKind.INSERT || row.getKind() == RowKind.UPDATE_AFTER) kind.add(key); else kind.remove(key);
  }

  static void tell() {
    Thread teller = new Thread(() -> {
      while (true) {
        System.out.printf("{\"read\": %d, \"wrong\": %s}%n", READ.get(), WRONG);
        try { Thread.sleep(200); } catch (InterruptedException error) { return; }
      }
    });
    teller.setDaemon(true);
    teller.start();
  }

  public static void main(String[] given) throws Exception {
    boolean follow = given.length > 6;
    Configuration settings = configuration(given[4], follow);
    TableEnvironment table = TableEnvironment.create(EnvironmentSettings.newInstance().withConfiguration(settings).inStreamingMode().build());
    table.getConfig().setLocalTimeZone(java.time.ZoneId.of("UTC"));
    table.createTemporarySystemFunction("COUNTED", Counted.class);
    table.createTemporarySystemFunction("DOCUMENT", Document.class);
    tables(table, given[0], given[1], given[2], given[5], follow);
    String differing = " FROM expected e FULL OUTER JOIN observed o ON e.id = o.id WHERE e.id IS NULL OR o.id IS NULL"
        + " OR e.customer <> o.customer OR e.amount <> o.amount OR e.status <> o.status OR e.quantity <> o.quantity OR e.moment <> o.moment"
        + " OR e.version <> o.version";
    if (follow) {
      tell();
      table.createTemporarySystemFunction("NOTED", Noted.class);
      table.executeSql("CREATE TEMPORARY TABLE nowhere (expected BIGINT, observed BIGINT) WITH ('connector'='blackhole')");
      table.executeSql("INSERT INTO nowhere SELECT NOTED(e.id, o.id), o.id" + differing).await();
    }
    try (CloseableIterator<Row> rows = table.executeSql("SELECT e.id, o.id" + differing).collect()) {
      while (rows.hasNext()) note(rows.next());
    }
    double wall = ManagementFactory.getRuntimeMXBean().getUptime() / 1e3;
    System.out.printf("{\"events\": %d, \"cpu\": %.3f, \"wall\": %.3f, \"peak_rss_mib\": %.1f, \"missing\": %s, \"wrong\": %s, \"extra\": %s}%n",
        READ.get(), cpu(), wall, peakMib(), MISSING, WRONG, EXTRA);
    System.out.flush();
    Runtime.getRuntime().halt(0);
  }
}
