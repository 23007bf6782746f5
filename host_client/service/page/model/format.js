// Format numbers and times for people. Pure.

// Created once, as creating one takes longer than a thousand uses.
const TIME = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DATE_TIME = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "medium" });

/** Format US dollars with two decimals, or four if it is less than a cent. */
export function money(usd) {
  if (usd === null || usd === undefined) return "–";
  const isLess = usd > 0 && Math.round(usd * 10_000) < 100;
  return isLess ? `$${Math.max(0.0001, usd).toFixed(4)}` : `$${usd.toFixed(2)}`;
}

/** Format a cost (null: not known yet) and its budget, if there is one. */
export function costAgainst(usd, budget) {
  return budget ? `${money(usd)} of ${money(budget)}` : money(usd);
}

/** Format a duration in milliseconds. */
export function duration(ms) {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return "–";
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  return elapsed(seconds);
}

/** Format a duration in seconds as whole seconds. */
export function elapsed(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${String(minutes).padStart(2, "0")} min`;
  return minutes ? `${minutes} min ${String(whole % 60).padStart(2, "0")} s` : `${whole} s`;
}

/** Format seconds as minutes and seconds: 4:07. */
export function countdown(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  const hours = Math.floor(whole / 3600);
  const minutes = String(Math.floor(whole / 60) % 60);
  return `${hours ? `${hours}:${minutes.padStart(2, "0")}` : minutes}:${String(whole % 60).padStart(2, "0")}`;
}

/** Format an age: "3 min ago". */
export function ago(seconds) {
  if (seconds < 10) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  if (count < 1e6) return `${(count / 1e3).toFixed(count < 1e4 ? 1 : 0)} kB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

/** Format seconds since the epoch as the reader's local time of day. */
export function timeOfDay(ts) {
  return TIME.format(ts * 1000);
}

/** Format seconds since the epoch as the reader's local date and time. */
export function dateTime(ts) {
  return DATE_TIME.format(ts * 1000);
}

/** Format an offset from the session's start in seconds: "+12.3 s", "+4:07". */
export function offset(seconds) {
  return seconds < 60 ? `+${Math.max(0, seconds).toFixed(1)} s` : `+${countdown(Math.floor(seconds))}`;
}

/** Return a count with its noun in the right number: plural(2, "call"). */
export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
