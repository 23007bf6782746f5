// What a screen reader is told, and the badge of what waits: the tab's title and its icon.

import { revealed } from "../model/safe.js";

/** Say something when the reader has finished; at once if it cannot wait. */
export function announce(text, { isUrgent = false } = {}) {
  document.getElementById(isUrgent ? "assertive" : "polite").textContent = revealed(text);
}

let current = { title: "", waiting: 0 };

/** Name the page, and how many decisions wait. */
export function setBadge(change) {
  current = { ...current, ...change };
  const { title, waiting } = current;
  const name = [title && revealed(title), "Sandspan"].filter(Boolean).join(" · ");
  document.title = waiting ? `(${waiting}) Needs you · ${name}` : name;
  const icon = document.querySelector('link[rel="icon"]');
  const href = waiting ? "icon-waiting.svg" : "icon.svg";
  if (icon.getAttribute("href") !== href) icon.setAttribute("href", href);
}
