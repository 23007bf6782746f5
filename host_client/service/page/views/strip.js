// The time strip: a lane for each agent; the model, the tools and the waits for a person as bars on a time axis.

import { now } from "../api.js";
import { stripRows, tickStep } from "../model/figures.js";
import { countdown, duration, timeOfDay } from "../model/format.js";
import { oneLine } from "../model/safe.js";
import { h, oncePerFrame, setText, svg, throttled } from "../parts/dom.js";

const ROW = 14;
const LANE_GAP = 6;
const AXIS = 18;
const LEAST_SECONDS = 0.05;
const DRAW_MS = 250; // between two drawings while events arrive
const LEAST_WIDTH = 1.5; // of a bar that has a neighbour
const NAMES = { model: "Model", tool: "Tool", wait: "Waiting for a person" };

export class Strip {
  constructor({ onJump }) {
    this.onJump = onJump;
    this.view = null; // [from, to] in seconds since the epoch; null shows all
    this.picked = -1;
    this.chart = svg("svg.chart", { role: "img", "aria-label": "Time strip" });
    this.box = h("div.chart-box", { tabindex: "0", role: "group", "aria-label": "Time strip: arrows move, plus and minus zoom, 0 shows all, N and P go from bar to bar" }, this.chart);
    this.note = h("span.strip-note", { role: "status" });
    this.node = h("section.strip", { "aria-label": "Time" }, h("div.strip-head", {}, legend(), this.note, this.buttons()), this.box);
    this.drawSoon = oncePerFrame(() => this.draw());
    this.drawLater = throttled(this.drawSoon, DRAW_MS);
    this.listen();
    this.size = new ResizeObserver(this.drawSoon);
    this.size.observe(this.box);
    this.timer = setInterval(() => this.isLive() && this.drawSoon(), 500);
  }

  destroy() {
    this.size.disconnect();
    clearInterval(this.timer);
  }

  update(state) {
    this.state = state;
    this.drawLater();
  }

  isLive() {
    return this.state && !this.state.closed && this.state.segments.some((each) => each.end === null);
  }

  buttons() {
    const button = (label, name, work) => h("button.icon", { type: "button", "aria-label": name, title: name, onclick: work }, label);
    return h("div.zoom", {}, button("−", "Zoom out", () => this.zoom(1.6)), button("+", "Zoom in", () => this.zoom(1 / 1.6)), h("button.small", { type: "button", title: "Show all of it", onclick: () => this.show(null) }, "Fit"));
  }

  listen() {
    this.box.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.chart.addEventListener("click", (event) => this.click(event));
    this.chart.addEventListener("pointermove", (event) => this.point(event));
    this.chart.addEventListener("pointerdown", (event) => this.drag(event));
  }

  /** Return the whole time range [from, to]; open segments reach to now. */
  whole() {
    const { firstTs, lastTs } = this.state;
    const to = this.isLive() ? Math.max(lastTs, Math.min(now(), lastTs + 3600)) : lastTs;
    return [firstTs, Math.max(to, firstTs + 1)];
  }

  show(view) {
    this.view = view;
    this.drawSoon();
  }

  zoom(factor, at = 0.5) {
    if (!this.state?.firstTs) return;
    const [from, to] = this.view ?? this.whole();
    const [first, last] = this.whole();
    const span = Math.max(LEAST_SECONDS, (to - from) * factor);
    if (span >= last - first) return this.show(null);
    const start = Math.min(Math.max(first, from + (to - from) * at - span * at), last - span);
    this.show([start, start + span]);
  }

  pan(part) {
    if (!this.view) return;
    const [from, to] = this.view;
    const [first, last] = this.whole();
    const start = Math.min(Math.max(first, from + (to - from) * part), last - (to - from));
    this.show([start, start + to - from]);
  }

  wheel(event) {
    const isSideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
    if (isSideways && !this.view) return;
    event.preventDefault();
    if (isSideways) return this.pan((event.deltaX || event.deltaY) / 800);
    const { left } = this.chart.getBoundingClientRect();
    const part = (event.clientX - left - this.labels) / Math.max(1, this.width - this.labels);
    return this.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), Math.max(0, Math.min(1, part)));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const work = {
      ArrowLeft: () => this.pan(-0.2), ArrowRight: () => this.pan(0.2), "+": () => this.zoom(1 / 1.6), "=": () => this.zoom(1 / 1.6),
      "-": () => this.zoom(1.6), 0: () => this.show(null), n: () => this.pick(1), p: () => this.pick(-1), Enter: () => this.go(this.picked),
    }[event.key];
    if (!work) return;
    event.preventDefault();
    event.stopPropagation();
    work();
  }

  drag(start) {
    if (!this.view || start.button !== 0) return;
    let last = start.clientX;
    const move = (event) => {
      if (Math.abs(event.clientX - start.clientX) > 4) this.hasDragged = true;
      this.pan((last - event.clientX) / Math.max(1, this.width - this.labels));
      last = event.clientX;
    };
    const end = () => removeEventListener("pointermove", move);
    this.hasDragged = false;
    addEventListener("pointermove", move);
    addEventListener("pointerup", end, { once: true });
    addEventListener("pointercancel", end, { once: true });
  }

  /** Show the details of the bar under the pointer. */
  point(event) {
    const at = event.target.dataset?.at;
    const segment = at === undefined ? null : this.state?.segments[Number(at)];
    setText(this.note, segment ? about(segment, this.whole()[1]) : "");
  }

  click(event) {
    const at = event.target.closest?.("[data-at]")?.dataset.at;
    if (at !== undefined && !this.hasDragged) this.go(Number(at));
    this.hasDragged = false;
  }

  go(at) {
    const segment = this.state?.segments[at];
    if (segment?.id) this.onJump(segment.id);
  }

  pick(direction) {
    const { segments } = this.state;
    if (!segments.length) return;
    this.picked = Math.max(0, Math.min(segments.length - 1, this.picked + direction));
    const segment = segments[this.picked];
    const [from, to] = this.view ?? this.whole();
    if (this.view && (segment.start < from || segment.start > to)) this.pan((segment.start - (from + to) / 2) / (to - from));
    setText(this.note, about(segment, this.whole()[1]));
    this.drawSoon();
  }

  draw() {
    if (!this.state || this.state.firstTs === null || !this.box.clientWidth) return;
    this.width = this.box.clientWidth;
    const lanes = stripRows(this.state.lanes, this.state.segments, this.whole()[1]);
    this.labels = this.width < 600 ? 64 : 110;
    const [from, to] = this.view ?? this.whole();
    const scale = (this.width - this.labels - 8) / (to - from);
    const place = { from, to, x: (ts) => this.labels + (ts - from) * scale, end: this.whole()[1] };
    const parts = [defs(), ...this.axis(place)];
    let y = AXIS;
    const index = new Map(this.state.segments.map((segment, at) => [segment, at]));
    for (const { lane, rows } of lanes) {
      parts.push(svg("text.lane-label", { x: 0, y: y + 11 }, oneLine(lane.label, this.width < 600 ? 9 : 16)));
      for (const row of rows) {
        parts.push(svg("rect.lane-back", { x: this.labels, y: y + 1, width: Math.max(0, this.width - this.labels - 8), height: ROW - 2, rx: 3 }));
        parts.push(...this.bars(row, y, place, index));
        y += ROW;
      }
      y += LANE_GAP;
    }
    this.chart.setAttribute("height", y);
    this.chart.setAttribute("viewBox", `0 0 ${this.width} ${y}`);
    this.chart.setAttribute("width", this.width);
    this.chart.replaceChildren(...parts);
  }

  /** Return the visible bars of a row; of bars on the same pixel only the first. */
  bars(row, y, place, index) {
    const bars = [];
    const covered = {};
    for (const segment of row) {
      const end = segment.end ?? place.end;
      if (end < place.from || segment.start > place.to) continue;
      const x = Math.max(this.labels, place.x(segment.start));
      const right = Math.min(this.width - 8, place.x(end));
      if (right - x < LEAST_WIDTH && right < (covered[segment.kind] ?? -1) + LEAST_WIDTH) continue;
      const width = Math.max(segment.kind === "wait" ? 3 : 2, right - x);
      covered[segment.kind] = Math.max(right, x + 1);
      const at = index.get(segment);
      const box = { x, y: y + 1, width, height: ROW - 2, rx: 2 };
      const rect = svg(`rect.seg.${segment.kind}`, { ...box, "data-at": at, "data-outcome": segment.outcome ?? "open" });
      if (at === this.picked) rect.classList.add("picked");
      bars.push(rect);
      if (segment.kind === "wait") bars.push(svg("rect.hatch", box));
    }
    return bars;
  }

  axis({ from, to, x }) {
    const step = tickStep(to - from, Math.max(2, (this.width - this.labels) / 90));
    const origin = this.state.firstTs;
    const ticks = [];
    for (let n = Math.ceil((from - origin) / step); origin + n * step <= to; n += 1) {
      const at = x(origin + n * step);
      if (at > this.width - 44) break;
      const label = step < 1 ? `${(n * step).toFixed(1)} s` : n * step < 60 ? `${n * step} s` : countdown(n * step);
      ticks.push(svg("line.tick", { x1: at, x2: at, y1: 14, y2: 4000 }), svg("text.tick-label", { x: at + 3, y: 11 }, label));
    }
    return ticks;
  }
}

function about(segment, end) {
  const ms = ((segment.end ?? end) - segment.start) * 1000;
  const what = segment.kind === "model" ? NAMES.model : `${NAMES[segment.kind]}: ${oneLine(segment.label, 60)}`;
  const outcome = segment.outcome && !["ok", "silent"].includes(segment.outcome) ? `, ${segment.outcome}` : "";
  return `${what}, ${duration(ms)}${outcome} (${timeOfDay(segment.start)})`;
}

function defs() {
  return svg("defs", {}, svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svg("rect.hatch-line", { width: 3, height: 6 })));
}

function legend() {
  return h("ul.legend", { "aria-label": "Legend" }, ["model", "tool", "wait"].map((kind) => h("li", {}, h(`span.swatch.swatch-${kind}`, { "aria-hidden": "true" }), NAMES[kind])));
}
