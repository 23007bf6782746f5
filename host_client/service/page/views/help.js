// A dialog with the keyboard shortcuts.

import { openDialog } from "../parts/dialog.js";
import { h } from "../parts/dom.js";

const KEYS = [
  ["Anywhere", [["?", "Show these keys"], ["L", "Go to the list of sessions"]]],
  ["On an approval", [["Y", "Allow once"], ["M", "Allow and remember the rule shown"], ["E", "Edit what would be done"], ["N", "Deny, with a reason"], ["Esc", "Leave a field"]]],
  ["On the time strip", [["←  →", "Move"], ["+  −  0", "Zoom in, zoom out, show all"], ["N  P", "Next, previous bar"], ["Enter", "Jump to it"]]],
  ["In a session", [["A", "Go to what waits for you"], ["C", "Write a message"], ["Ctrl or ⌘ + Enter", "Send it"], ["J  K", "Next, previous step of the transcript"], ["Enter", "Unfold the step"], ["End", "Go to the latest"], ["D", "Show or hide the details"], ["T", "Go to the time strip"], ["Shift + X", "Interrupt the turn"]]],
];

export function showKeys() {
  if (document.querySelector("dialog[open]")) return;
  const groups = KEYS.map(([name, rows]) => h("section", {}, h("h3", {}, name), h("dl.keys", {}, rows.map(([key, what]) => [h("dt", {}, key.split("  ").map((each) => h("kbd", {}, each))), h("dd", {}, what)]))));
  openDialog("Keyboard", h("div.key-groups", {}, groups), { className: "dialog.wide" });
}
