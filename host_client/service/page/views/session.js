// The page of a session. All events of the stream, stored or live, go through the reducer and then to every view.

import { api, Problem } from "../api.js";
import { initial, reduce } from "../model/reducer.js";
import { announce, setBadge } from "../parts/announce.js";
import { confirmDialog } from "../parts/dialog.js";
import { h, isTyping } from "../parts/dom.js";
import { STATUS } from "../model/words.js";
import { SessionStream } from "../stream.js";
import { Composer } from "./composer.js";
import { Dock } from "./dock.js";
import { SessionHeader } from "./header.js";
import { Notices } from "./notices.js";
import { Panel } from "./panel.js";
import { Strip } from "./strip.js";
import { Transcript } from "./transcript.js";

export class SessionPage {
  /** `context`: {me, decidedBy(), myName(), onUnauthorized()}. */
  constructor(id, eventId, context) {
    this.id = id;
    this.context = context;
    this.state = initial;
    this.record = { id, title: "", status: "starting" };
    const { role } = context.me;
    this.header = new SessionHeader({ onPanel: () => this.togglePanel() });
    this.strip = new Strip({ onJump: (event) => this.jump(event) });
    this.transcript = new Transcript({ sessionId: id, me: context.myName, onLink: (event) => this.jump(event), onRewind: role === "operator" ? (messageId) => this.askToRewind(messageId) : null });
    this.composer = new Composer({ sessionId: id, canOperate: role === "operator", onProblem: (problem) => this.problem(problem) });
    const owner = { sessionId: id, canDecide: role === "operator" || role === "approver", decidedBy: context.decidedBy };
    this.notices = new Notices();
    this.dock = new Dock(owner, this.notices, () => this.focusContent());
    this.panel = new Panel({ onJump: (event) => this.jump(event, { leavesPanel: true }), onClose: () => this.togglePanel(), onEnd: role === "operator" ? () => this.composer.askToClose() : null, onCommand: role === "operator" ? (command) => this.command(command) : null });
    this.center = h("main.center", { id: "main", tabindex: "-1" }, this.transcript.node, this.notices.node, h("div.dock", {}, this.dock.node, this.composer.node));
    this.node = h("div.session", { "data-connection": "connecting" }, this.header.node, this.strip.node, h("div.columns", {}, this.center, this.panel.node));
    this.roomy = matchMedia("(min-width: 1100px)");
    this.node.classList.toggle("with-panel", this.roomy.matches);
    // On a narrow screen the panel would cover the transcript.
    this.onNarrow = () => this.roomy.matches || this.node.classList.remove("with-panel");
    this.roomy.addEventListener("change", this.onNarrow);
    this.onKey = (event) => this.key(event);
    document.addEventListener("keydown", this.onKey);
    if (eventId) this.transcript.wanted = eventId;
    if (eventId) this.transcript.follows = false;
    this.begin();
  }

  destroy() {
    this.isGone = true;
    document.removeEventListener("keydown", this.onKey);
    this.roomy.removeEventListener("change", this.onNarrow);
    this.stream?.stop();
    for (const part of [this.header, this.strip, this.transcript, this.notices, this.dock, this.panel]) part.destroy();
    setBadge({ title: "", waiting: 0 });
  }

  async begin() {
    try {
      this.record = await api.session(this.id);
    } catch (problem) {
      return this.fail(problem);
    }
    if (this.isGone) return;
    this.render();
    this.stream = new SessionStream(this.id, {
      onEntries: (entries) => this.take(entries),
      onState: (state, status) => this.connection(state, status),
    });
  }

  take(entries) {
    const before = this.state;
    this.state = reduce(before, entries);
    if (this.state === before) return;
    this.render();
    if (this.state.status !== before.status && before.lastId) announce(STATUS[this.state.status]);
    if (this.state.closed && !before.closed) this.reload();
  }

  /** Load what the log does not have: title, budget, the link to the trace. */
  async reload() {
    const record = await api.session(this.id).catch(() => null);
    if (!record || this.isGone) return;
    this.record = record;
    this.render();
  }

  render() {
    const { state, record } = this;
    this.header.update(state, record);
    this.strip.update(state);
    this.transcript.update(state);
    this.dock.update(state);
    this.composer.update(state.lastId ? state : { status: record.status, closed: null });
    this.panel.update(state, record);
    setBadge({ title: record.title, waiting: state.waiting.length });
    this.node.classList.toggle("waits", state.waiting.length > 0);
    this.node.dataset.status = state.status;
    this.node.dataset.lastId = state.lastId;
  }

  connection(name, status) {
    if (this.isGone) return;
    this.node.dataset.connection = name;
    this.header.connect(name);
    if (name === "refused") this.fail(new Problem(status, { detail: `The stream of events was refused (${status}).` }));
    else if (name === "over" && !this.state.closed) this.reload();
  }

  /** Send a command to the agent; its outcome comes with the stream. */
  command(command) {
    return api.command(this.id, command).catch((problem) => this.problem(problem));
  }

  async askToRewind(messageId) {
    const text = "Files that the agent's tools have changed since this prompt get their earlier content. What commands did stays, and so does the conversation.";
    if (await confirmDialog("Set files back?", text, "Set files back")) this.command({ type: "rewind_files", user_message_id: messageId });
  }

  problem(problem) {
    if (problem.status === 401) this.context.onUnauthorized();
    else this.notices.tell(problem.message, { isProblem: true });
  }

  /** Show a message in place of the page. */
  fail(problem) {
    if (this.isGone) return;
    if (problem.status === 401) return this.context.onUnauthorized();
    if (this.state.lastId) return this.problem(problem);
    const text = problem.status === 404 ? "There is no such session, or it is not yours to see." : problem.message;
    const retry = problem.status === 404 ? null : h("button", { type: "button", onclick: () => location.reload() }, "Try again");
    this.node.replaceChildren(h("main.empty", { id: "main" }, h("h1", {}, problem.status === 404 ? "Not found" : "This did not work"), h("p", {}, text), retry, h("p", {}, h("a", { href: "#/" }, "All sessions"))));
  }

  jump(eventId, { leavesPanel = false } = {}) {
    if (leavesPanel && !this.roomy.matches) this.node.classList.remove("with-panel");
    history.replaceState(null, "", `#/s/${encodeURIComponent(this.id)}/e/${eventId}`);
    this.transcript.jump(eventId);
  }

  togglePanel() {
    const isOpen = this.node.classList.toggle("with-panel");
    if (isOpen) this.panel.buttons[0].focus();
    else this.header.panel.focus();
  }

  focusContent() {
    if (this.context.me.role === "operator" && !this.state.closed && matchMedia("(hover: hover)").matches) this.composer.focus();
    else this.center.focus();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || document.querySelector("dialog[open]")) return;
    const work = {
      a: () => this.dock.focusFirst(), c: () => this.composer.focus(), j: () => this.transcript.step(1), k: () => this.transcript.step(-1),
      d: () => this.togglePanel(), t: () => this.strip.box.focus(), End: () => this.transcript.toEnd(), X: () => this.composer.canOperate && this.composer.end(),
    }[event.key];
    if (!work) return;
    event.preventDefault();
    work();
  }
}
