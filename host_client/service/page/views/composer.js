// The form to send the next turn, interrupt the current one, or close the session.

import { api, idempotencyKey } from "../api.js";
import { h, setText } from "../parts/dom.js";
import { confirmDialog } from "../parts/dialog.js";
import { AttachmentList } from "./attach.js";

const SENDS = `${/Mac|iPhone|iPad/.test(navigator.platform) ? "⌘" : "Ctrl"}+Enter sends.`;

export class Composer {
  constructor({ sessionId, canOperate, onProblem }) {
    this.sessionId = sessionId;
    this.canOperate = canOperate;
    this.onProblem = onProblem;
    this.key = null;
    this.text = h("textarea", { rows: "1", "aria-label": "Message to the agent", placeholder: "Message Claude", enterkeyhint: "enter" });
    this.send = h("button.primary", { type: "submit" }, "Send");
    this.interrupt = h("button", { type: "button", hidden: true, onclick: () => this.end() }, "Interrupt");
    this.close = h("button.quiet.close-session", { type: "button", onclick: () => this.askToClose() }, "Close session");
    this.hint = h("span.hint");
    this.form = h("form.composer", { onsubmit: (event) => this.submit(event) });
    this.attachments = new AttachmentList(this.form, () => this.attached());
    this.form.append(this.attachments.list, this.text, h("div.composer-row", {}, this.attachments.button, this.hint, this.close, this.interrupt, this.send));
    this.over = h("p.over", { hidden: true });
    this.node = h("div.composer-box", {}, canOperate ? this.form : null, this.over);
    this.text.addEventListener("input", () => this.typed());
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
      else if (event.key === "Escape") this.text.blur();
    });
  }

  update({ status, closed, background = [] }) {
    const isBusy = status === "running" || status === "starting";
    const isTurn = status === "running" || status === "needs_you";
    this.interrupt.hidden = !isTurn && !background.length;
    setText(this.interrupt, isTurn ? "Interrupt" : "Stop background work");
    const when = status === "needs_you" ? " Read after this turn; it approves nothing." : isBusy ? " Read after this turn." : "";
    setText(this.hint, `${SENDS}${when}`);
    this.form.hidden = Boolean(closed);
    this.over.hidden = !closed && this.canOperate;
    if (closed) setText(this.over, "This session is over. Nothing more can be sent.");
    else setText(this.over, "You may look at this session, not write to it.");
  }

  /** Files go with a message only, so the browser asks for one. */
  attached() {
    this.key = null;
    this.text.required = !this.attachments.isEmpty;
  }

  typed() {
    this.key = null;
    this.text.style.setProperty("height", "auto");
    this.text.style.setProperty("height", `${Math.min(200, this.text.scrollHeight)}px`);
  }

  focus() {
    if (!this.form.hidden) this.text.focus();
  }

  async submit(event) {
    event.preventDefault();
    const text = this.text.value.trim();
    if (!text || this.send.disabled) return;
    this.lock(true);
    try {
      const attachments = await this.attachments.ready();
      if (attachments === null) throw new Error("A file cannot be sent: remove it, or try again.");
      // The same message, sent again after a failure, is the same turn.
      this.key ??= idempotencyKey();
      await api.send(this.sessionId, { text, ...(attachments.length && { attachments }) }, this.key);
      this.text.value = "";
      this.attachments.clear();
      this.typed();
    } catch (problem) {
      this.onProblem(problem);
    } finally {
      this.lock(false);
    }
  }

  /** Keep the message as it is while it is sent: files may take minutes. */
  lock(isLocked) {
    this.send.disabled = isLocked;
    this.text.readOnly = isLocked;
    this.attachments.isLocked = isLocked;
  }

  async end() {
    if (this.interrupt.hidden) return;
    this.interrupt.disabled = true;
    await api.interrupt(this.sessionId).catch(this.onProblem);
    this.interrupt.disabled = false;
  }

  async askToClose() {
    const isSure = await confirmDialog("Close this session?", "The agent is stopped, and what waits for approval is denied. The transcript stays.", "Close session");
    if (isSure) await api.close(this.sessionId).catch(this.onProblem);
  }
}
