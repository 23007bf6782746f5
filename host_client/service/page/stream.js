// One session's stream, read with fetch. EventSource hides the status of an answer and the heartbeats, so it cannot
// distinguish an ended session from a refused request, nor notice a dead connection that was never closed.

import { api } from "./api.js";

const SILENT_MS = 45_000; // three heartbeats
const RETRY_MS = [500, 1000, 2000, 4000, 8000];

/** Parses server-sent events from text as it arrives; calls onEvent({id, data}) and onComment(). Otherwise pure. */
export class SseParser {
  constructor(onEvent, onComment = () => {}) {
    this.onEvent = onEvent;
    this.onComment = onComment;
    this.rest = [];
    this.clear();
  }

  clear() {
    this.id = null;
    this.data = [];
  }

  feed(text) {
    // Only the last piece can end a line, so a line of megabytes is joined once instead of with every piece.
    const lines = text.split("\n");
    if (lines.length === 1) return void this.rest.push(text);
    lines[0] = this.rest.join("") + lines[0];
    this.rest = [lines.pop()];
    for (const line of lines) this.line(line.endsWith("\r") ? line.slice(0, -1) : line);
  }

  line(line) {
    if (line === "") {
      if (this.data.length) this.onEvent({ id: this.id, data: this.data.join("\n") });
      return this.clear();
    }
    if (line.startsWith(":")) return this.onComment();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "id") this.id = /^\d+$/.test(value) ? Number(value) : null;
    else if (field === "data") this.data.push(value);
  }
}

/**
 * Follows a session until it ends or `stop` is called.
 *
 * `onEntries([{id, event}])` gets the events since the last frame; `onState(name, detail)` gets connecting, open, lost
 * (reconnecting), over, or refused (with a Problem's status).
 */
export class SessionStream {
  constructor(id, { after = 0, onEntries, onState }) {
    this.id = id;
    this.after = after;
    this.onEntries = onEntries;
    this.onState = onState;
    this.pending = [];
    this.attempt = 0;
    this.isStopped = false;
    this.isOver = false;
    this.deliver = this.deliver.bind(this);
    this.wake = this.wake.bind(this);
    addEventListener("online", this.wake);
    document.addEventListener("visibilitychange", this.wake);
    this.onState("connecting");
    this.run();
  }

  stop() {
    this.isStopped = true;
    this.abort?.abort();
    this.wakeUp?.();
    removeEventListener("online", this.wake);
    document.removeEventListener("visibilitychange", this.wake);
  }

  /** Deliver entries if the page was hidden, as it gets no more frames; otherwise reconnect without further delay. */
  wake() {
    if (document.hidden) this.deliver();
    else this.wakeUp?.();
  }

  async run() {
    while (!this.isStopped && !this.isOver) {
      const end = await this.connect().catch(() => "lost");
      if (this.isStopped) return;
      if (end === "over" || this.isOver) return this.finish("over");
      if (typeof end === "number") return this.finish("refused", end);
      this.onState("lost");
      await this.pause(RETRY_MS[Math.min(this.attempt++, RETRY_MS.length - 1)]);
    }
  }

  finish(state, detail) {
    this.deliver();
    this.onState(state, detail);
    this.stop();
  }

  pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wakeUp = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Read one connection to its end; return "over", "lost" or the status of a refusal. */
  async connect() {
    this.abort = new AbortController();
    const headers = { accept: "text/event-stream" };
    const options = { headers, signal: this.abort.signal, credentials: "same-origin", cache: "no-store" };
    let watch = setTimeout(() => this.abort.abort(), SILENT_MS);
    const alive = () => {
      clearTimeout(watch);
      watch = setTimeout(() => this.abort.abort(), SILENT_MS);
    };
    try {
      const response = await fetch(api.eventsUrl(this.id, this.after), options);
      if (response.status === 204) return "over";
      if (!response.ok) return response.status === 429 || response.status >= 500 ? "lost" : response.status;
      this.opened();
      await this.read(response.body, alive);
      return "lost";
    } finally {
      clearTimeout(watch);
    }
  }

  opened() {
    if (this.hasOpened) this.queue({ id: null, event: { type: "reconnected" } });
    this.hasOpened = true;
    this.attempt = 0;
    this.onState("open");
  }

  async read(body, alive) {
    const parser = new SseParser((message) => this.take(message));
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (let chunk = await reader.read(); !chunk.done && !this.isStopped; chunk = await reader.read()) {
      alive();
      parser.feed(chunk.value);
    }
  }

  take({ id, data }) {
    const event = JSON.parse(data);
    if (event.type === "dropped") {
      this.after = Math.min(this.after, event.data?.after ?? this.after);
      return;
    }
    if (id !== null) this.after = id;
    if (event.type === "gap") this.after = Math.max(this.after, event.data.last);
    if (event.type === "closed") this.isOver = true;
    this.queue({ id, event });
  }

  queue(entry) {
    this.pending.push(entry);
    this.deliverSoon();
  }

  /** Deliver entries in the next frame, or by a timer on a hidden page, which must still count waiting requests. */
  deliverSoon() {
    if (this.isDue) return;
    this.isDue = true;
    if (document.hidden) setTimeout(this.deliver, 100);
    else requestAnimationFrame(this.deliver);
  }

  deliver() {
    this.isDue = false;
    const entries = this.pending;
    this.pending = [];
    if (entries.length && !this.isStopped) this.onEntries(entries);
  }
}
