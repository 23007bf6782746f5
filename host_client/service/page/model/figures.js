// Figures computed from a state. Pure.

/** Return one row for each tool, most used first: {name, calls, failures, denied, medianMs}. */
export function toolTable(items) {
  const rows = new Map();
  for (const item of items) {
    if (item.kind !== "tool") continue;
    const row = rows.get(item.name) ?? { name: item.name, calls: 0, failures: 0, denied: 0, times: [] };
    row.calls += 1;
    if (wasRefused(item)) row.denied += 1;
    else if (item.result?.isError) row.failures += 1;
    if (item.result && !wasRefused(item)) row.times.push(item.result.durationMs);
    rows.set(item.name, row);
  }
  return [...rows.values()]
    .map(({ times, ...row }) => ({ ...row, medianMs: median(times) }))
    .sort((a, b) => b.calls - a.calls || (a.name < b.name ? -1 : 1));
}

/** Return the cost of all ended turns in US dollars; null while the first one runs. */
export function costSoFar(state, record) {
  const known = state.costUsd ?? record.cost_usd ?? 0;
  const isOver = state.closed !== null || ["closed", "failed"].includes(record.status);
  return known === 0 && state.costUsd === null && !isOver ? null : known;
}

/** Return whether a call was not run: its approval was denied, timed out or was cancelled. */
export function wasRefused(item) {
  if (item.result?.deniedBy) return true;
  return ["deny", "timeout", "cancelled"].includes(item.request?.resolved?.decision) && item.request.kind === "approval";
}

/** Return the median; null for no values. */
export function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/**
 * Return the strip's rows [{lane, rows: [[segment, …], …]}]: each lane's segments, with overlapping ones in rows of
 * their own (but a wait in the row of its tool). Segments that are open end at `now`.
 */
export function stripRows(lanes, segments, now) {
  const result = lanes.map((lane) => ({ lane, rows: [[]], ends: [-Infinity] }));
  const byKey = new Map(result.map((each) => [each.lane.key, each]));
  const rowOfTool = new Map();
  for (const segment of segments) {
    const lane = byKey.get(segment.lane);
    if (!lane) continue;
    const end = segment.end ?? now;
    if (segment.kind === "wait") {
      (lane.rows[rowOfTool.get(segment.toolUseId)] ?? lane.rows[0]).push(segment);
      continue;
    }
    let row = lane.ends.findIndex((last) => last <= segment.start + 1e-6);
    if (row < 0) row = lane.rows.length < MOST_ROWS ? lane.rows.push([]) - 1 : MOST_ROWS - 1;
    lane.rows[row].push(segment);
    lane.ends[row] = Math.max(lane.ends[row] ?? -Infinity, end);
    if (segment.kind === "tool") rowOfTool.set(segment.toolUseId, row);
  }
  return result;
}

const MOST_ROWS = 4;

/** Return at most `most` round steps for a time axis of so many seconds. */
export function tickStep(seconds, most) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400];
  return steps.find((step) => seconds / step <= most) ?? 86400 * Math.ceil(seconds / 86400 / most);
}
