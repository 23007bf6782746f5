// Announcements to screen readers, and the number of waiting requests in the tab's title and icon.

import { revealed } from "../model/safe.js";

/** Announce a text after the reader's current one, or at once if it cannot wait. */
export function announce(text, { isUrgent = false } = {}) {
  document.getElementById(isUrgent ? "assertive" : "polite").textContent = revealed(text);
}

let current = { title: "", waiting: 0 };

/** Set the page's title with the number of waiting decisions. */
export function setBadge(change) {
  current = { ...current, ...change };
  const { title, waiting } = current;
  const name = [title && revealed(title), "Sandspan"].filter(Boolean).join(" · ");
  document.title = waiting ? `(${waiting}) Needs you · ${name}` : name;
  const icon = document.querySelector('link[rel="icon"]');
  const href = waiting ? "icon-waiting.svg" : "icon.svg";
  if (icon.getAttribute("href") !== href) icon.setAttribute("href", href);
}
