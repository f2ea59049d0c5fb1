// Kafka Streams: KTable-KTable outer join with its defaults (RocksDB and changelog), one stream thread.
// Arguments and output as in answer.py: SERVERS SOURCE TARGET TOTAL DIRECTORY GROUP [follow].
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.lang.management.ManagementFactory;
import java.math.BigDecimal;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ConcurrentSkipListSet;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.state.KeyValueStore;

public class KStreamsJoin {
  static final ObjectMapper JSON = new ObjectMapper();
  static final AtomicLong READ = new AtomicLong();
  static final Set<Integer> MISSING = new ConcurrentSkipListSet<>(), EXTRA = new ConcurrentSkipListSet<>(), WRONG = new ConcurrentSkipListSet<>();

  interface Reading { String of(byte[] value) throws Exception; }

  static String row(byte[] value) throws Exception {
    JsonNode after = JSON.readTree(value).get("after");
    return fields(after, after.get("amount").textValue(), Instant.parse(after.get("updated_at").textValue()).toEpochMilli());
  }

  static String document(byte[] value) throws Exception {
    JsonNode after = JSON.readTree(JSON.readTree(value).get("after").textValue());
    return fields(after, after.get("amount").get("$numberDecimal").textValue(), after.get("updated_at").get("$date").longValue());
  }

  static String fields(JsonNode after, String amount, long moment) {
    return String.join("\u001f", after.get("customer").textValue(), new BigDecimal(amount).stripTrailingZeros().toPlainString(),
        after.get("status").textValue(), after.get("quantity").asText(), Long.toString(moment), after.get("version").asText());
  }

  static String counted(Reading reading, byte[] value) {
    READ.incrementAndGet();
    try { return reading.of(value); } catch (Exception error) { throw new RuntimeException(error); }
  }

  static Serde<String> keys() {
    Deserializer<String> text = (topic, data) -> {
      try { return data == null ? null : JSON.readTree(data).get("id").asText(); } catch (Exception error) { throw new RuntimeException(error); }
    };
    return Serdes.serdeFrom(new StringSerializer(), text);
  }

  static void note(String key, String verdict) {
    int number = Integer.parseInt(key);
    MISSING.remove(number);
    EXTRA.remove(number);
    switch (verdict) {
      case "missing" -> MISSING.add(number);
      case "extra" -> EXTRA.add(number);
      case "wrong" -> WRONG.add(number);
      default -> { }
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

  public static void main(String[] given) throws Exception {
    long total = Long.parseLong(given[3]);
    boolean follow = given.length > 6;
    Properties settings = new Properties();
    settings.put("application.id", given[5]);
    settings.put("bootstrap.servers", given[0]);
    settings.put("auto.offset.reset", "earliest");
    settings.put("num.stream.threads", "1");
    settings.put("state.dir", given[4] + "/state");
    if (follow) { settings.put("commit.interval.ms", "500"); settings.put("session.timeout.ms", "6000"); }
    StreamsBuilder builder = new StreamsBuilder();
    Consumed<String, byte[]> reading = Consumed.with(keys(), Serdes.ByteArray());
    KTable<String, String> expected = builder.stream(given[1], reading).mapValues(value -> counted(KStreamsJoin::row, value)).toTable(table("expected"));
    KTable<String, String> observed = builder.stream(given[2], reading).mapValues(value -> counted(KStreamsJoin::document, value)).toTable(table("observed"));
    expected.outerJoin(observed, (left, right) -> left == null ? "extra" : right == null ? "missing" : left.equals(right) ? "equal" : "wrong")
        .toStream().foreach((key, verdict) -> { if (verdict != null) note(key, verdict); });
    KafkaStreams streams = new KafkaStreams(builder.build(), settings);
    streams.start();
    while (follow) {
      System.out.printf("{\"read\": %d, \"wrong\": %s}%n", READ.get(), WRONG);
      Thread.sleep(200);
    }
    while (READ.get() < total) Thread.sleep(20);
    streams.close(Duration.ofSeconds(60)); // the caches forward their last results only then
    double wall = ManagementFactory.getRuntimeMXBean().getUptime() / 1e3;
    System.out.printf("{\"events\": %d, \"cpu\": %.3f, \"wall\": %.3f, \"peak_rss_mib\": %.1f, \"missing\": %s, \"wrong\": %s, \"extra\": %s}%n",
        READ.get(), cpu(), wall, peakMib(), MISSING, WRONG, EXTRA);
    System.out.flush();
    Runtime.getRuntime().halt(0);
  }

  static Materialized<String, String, KeyValueStore<Bytes, byte[]>> table(String name) {
    return Materialized.<String, String, KeyValueStore<Bytes, byte[]>>as(name).withKeySerde(Serdes.String()).withValueSerde(Serdes.String());
  }
}
