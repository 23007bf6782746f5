// What became of something, in a line over the transcript: one at a time, away from the cards that still wait.

import { h } from "../parts/dom.js";
import { shown } from "../parts/text.js";

const NOTICE_MS = 3000;

export class Notices {
  constructor() {
    this.node = h("div.notices", { role: "status" });
  }

  destroy() {
    clearTimeout(this.timer);
  }

  /** Show a line in place of the one before; it goes by itself, a problem stays until it is closed. */
  tell(text, { isProblem = false } = {}) {
    clearTimeout(this.timer);
    const dismiss = h("button.icon", { type: "button", "aria-label": "Dismiss", onclick: () => this.node.replaceChildren() }, "✕");
    this.node.replaceChildren(h(isProblem ? "div.toast.problem" : "div.toast", {}, h("span", {}, shown(text)), dismiss));
    if (!isProblem) this.timer = setTimeout(() => this.node.replaceChildren(), NOTICE_MS);
  }

  /** Take away what only confirms: it would be read as about the next request. */
  clearConfirmation() {
    if (!this.node.querySelector(".problem")) this.node.replaceChildren();
  }
}
