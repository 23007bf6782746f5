// A notice above the transcript with the outcome of an action; one at a time, apart from the waiting cards.

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

  /** Replace the notice. It disappears by itself; a problem stays until it is closed. */
  tell(text, { isProblem = false } = {}) {
    clearTimeout(this.timer);
    const dismiss = h("button.icon", { type: "button", "aria-label": "Dismiss", onclick: () => this.node.replaceChildren() }, "✕");
    this.node.replaceChildren(h(isProblem ? "div.toast.problem" : "div.toast", {}, h("span", {}, shown(text)), dismiss));
    if (!isProblem) this.timer = setTimeout(() => this.node.replaceChildren(), NOTICE_MS);
  }

  /** Remove a confirmation, which could be misread as one of the next request. */
  clearConfirmation() {
    if (!this.node.querySelector(".problem")) this.node.replaceChildren();
  }
}
