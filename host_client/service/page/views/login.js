// The form for a token. The service sets it as a cookie that no script can read; the page does not store it.

import { api } from "../api.js";
import { setBadge } from "../parts/announce.js";
import { h, setText } from "../parts/dom.js";

export class LoginPage {
  constructor(onDone) {
    setBadge({ title: "Sign in", waiting: 0 });
    const token = h("input", { type: "password", name: "token", required: true, autocomplete: "current-password", spellcheck: "false", autofocus: true });
    const message = h("p.card-message", { hidden: true, role: "alert" });
    const button = h("button.primary", { type: "submit" }, "Sign in");
    const onsubmit = async (event) => {
      event.preventDefault();
      button.disabled = true;
      try {
        await api.login(token.value.trim());
        onDone();
      } catch (problem) {
        message.hidden = false;
        setText(message, problem.status === 401 ? "This token is not known, or no longer valid." : problem.message);
        token.select();
      } finally {
        button.disabled = false;
      }
    };
    const form = h("form.login", { onsubmit }, h("img.mark", { src: "icon.svg", alt: "", width: 40, height: 40 }), h("h1", {}, "Sandspan"), h("label.field", {}, h("span", {}, "Access token"), token), message, button, h("p.muted", {}, "Whoever runs this service makes tokens with ", h("code", {}, "host_client tokens create"), "."));
    this.node = h("main.login-page", { id: "main" }, form);
    requestAnimationFrame(() => token.focus());
  }

  destroy() {
    this.node.remove();
  }
}
