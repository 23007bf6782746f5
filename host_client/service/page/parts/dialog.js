// Dialogs: the browser's own element keeps the focus inside and closes on Escape.

import { h } from "./dom.js";

/** Show a dialog with a heading; `close()` and Escape remove it, and the focus returns to where it was. */
export function openDialog(title, body, { className = "dialog", onClose = () => {} } = {}) {
  const before = document.activeElement;
  const close = () => dialog.close();
  const head = h("header.dialog-head", {}, h("h2", {}, title), h("button.icon", { type: "button", "aria-label": "Close", onclick: close }, "✕"));
  const dialog = h(`dialog.${className}`, { "aria-label": title }, head, body);
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before instanceof HTMLElement && before.isConnected) before.focus();
    onClose();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, close };
}

/** Ask yes or no; resolves to true for yes. */
export function confirmDialog(title, text, yes) {
  return new Promise((resolve) => {
    let isSure = false;
    const sure = () => {
      isSure = true;
      close();
    };
    const body = h("div", {}, h("p", {}, text), h("div.actions", {}, h("button.danger", { type: "button", onclick: sure }, yes), h("button.quiet", { type: "button", onclick: () => close() }, "Cancel")));
    const { close } = openDialog(title, body, { onClose: () => resolve(isSure) });
  });
}
