// Times, ages and numbers as people read them.

const COUNT = new Intl.NumberFormat("en-US");

export function count(number) {
  return number === null || number === undefined ? "unknown" : COUNT.format(number);
}

/** "2026-11-24 10:02:11.123" from RFC 3339, without a detour over local time. */
export function moment(text) {
  if (!text) return "unknown";
  const [date, clock] = new Date(text).toISOString().split("T");
  return `${date} ${clock.replace("Z", "")}`;
}

export function clock(text) {
  return text ? new Date(text).toISOString().slice(11, 19) : "unknown";
}

/** A duration in seconds: "0.4 s", "12 s", "3 min 20 s", "5 h 02 min", "3 d 4 h". */
export function span(seconds) {
  const size = Math.abs(seconds);
  const sign = seconds < 0 ? "−" : "";
  if (size < 10) return `${sign}${size.toFixed(1)} s`;
  if (size < 90) return `${sign}${Math.round(size)} s`;
  const whole = Math.round(size);
  if (whole < 3600) return `${sign}${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 48 * 60) return `${sign}${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  const hours = Math.round(minutes / 60);
  return `${sign}${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const ROUND_TRIP_SECONDS = 2;

/**
 * Seconds from `text` to `now` (milliseconds since the epoch, the server's). What lies ahead by less than the age of our copy of
 * the server's clock is now; what lies further ahead is shown as it is.
 */
export function age(text, now) {
  if (!text) return null;
  const seconds = (now - Date.parse(text)) / 1000;
  return seconds < 0 && seconds > -ROUND_TRIP_SECONDS ? 0 : seconds;
}

/** A share as a percentage that never rounds up to 100 %. */
export function percent(ratio) {
  if (ratio === null || ratio === undefined) return "no writes yet";
  const floored = Math.floor(ratio * 1e5) / 1e3;
  return `${floored.toFixed(ratio === 1 ? 0 : 3)} %`;
}

export function words(label) {
  return String(label).replaceAll("_", " ");
}
