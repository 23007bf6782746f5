// The page: the caller, the view that the address names, and the keyboard shortcuts that work everywhere.
//
//   #/                     the list of sessions
//   #/s/<id>[/e/<event>]   one session, at one of its events

import { api } from "./api.js";
import { openDialog } from "./parts/dialog.js";
import { h, isTyping } from "./parts/dom.js";
import { shown } from "./parts/text.js";
import { showKeys } from "./views/help.js";
import { ListPage } from "./views/list.js";
import { LoginPage } from "./views/login.js";
import { SessionPage } from "./views/session.js";

const root = document.getElementById("app");
const NAME_KEY = "sandspan.name";
let me = null;
let page = null;

const context = {
  get me() {
    return me;
  },
  /** Return the field with the person's name for a decision; with a token the service knows the name. */
  decidedBy: () => (me.auth || !ownName() ? {} : { decided_by: ownName() }),
  myName: () => (me.auth ? me.name : ownName() || me.name),
  onUnauthorized: () => login(),
};

function ownName() {
  try {
    return localStorage.getItem(NAME_KEY) ?? "";
  } catch {
    return ""; // storage is disabled
  }
}

function show(next) {
  page?.destroy();
  page = next;
  root.replaceChildren(...(next instanceof LoginPage ? [] : [topBar()]), next.node);
}

function topBar() {
  const leave = me.auth
    ? h("button.quiet.small", { type: "button", onclick: () => api.logout().then(login, login) }, "Sign out")
    : null;
  const name = me.auth ? h("span.me", { title: `${me.role} of ${me.tenant_id}` }, shown(me.name)) : h("button.quiet.small.me", { type: "button", title: "Your name, for the decisions you take", onclick: askName }, shown(context.myName()));
  const role = me.role === "operator" ? null : h("span.role", {}, me.role);
  return h("header.bar", {}, h("a.brand", { href: "#/", "aria-label": "Sandspan, all sessions" }, h("img", { src: "icon.svg", alt: "", width: 22, height: 22 }), h("span", {}, "Sandspan")), h("span.stretch"), role, name, leave, h("button.icon", { type: "button", "aria-label": "Keyboard", title: "Keyboard (?)", onclick: showKeys }, "?"));
}

function askName() {
  const field = h("input", { type: "text", value: ownName(), maxlength: "80", placeholder: me.name });
  const onsubmit = (event) => {
    event.preventDefault();
    localStorage.setItem(NAME_KEY, field.value.trim());
    root.querySelector(".bar").replaceWith(topBar());
    close();
  };
  const form = h("form", { onsubmit }, h("p.muted", {}, "This service has no accounts. Your decisions are recorded under this name."), h("label.field", {}, h("span", {}, "Name"), field), h("div.actions", {}, h("button.primary", { type: "submit" }, "Save")));
  const { close } = openDialog("Your name", form);
  field.focus();
}

function login() {
  if (page instanceof LoginPage) return;
  show(new LoginPage(start));
}

function route() {
  if (!me) return;
  const match = /^#\/s\/([^/]+)(?:\/e\/(\d+))?$/.exec(location.hash);
  if (!match) return show(new ListPage(context));
  const [id, event] = [decodeURIComponent(match[1]), match[2] ? Number(match[2]) : null];
  if (page instanceof SessionPage && page.id === id && event) return page.transcript.jump(event);
  return show(new SessionPage(id, event, context));
}

async function start() {
  try {
    me = await api.me();
  } catch (problem) {
    if (problem.status === 401) return login();
    root.replaceChildren(h("main.empty", { id: "main" }, h("h1", {}, "The service cannot be reached"), h("p", {}, problem.message), h("button", { type: "button", onclick: start }, "Try again")));
    return undefined;
  }
  return route();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main")?.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || !me) return;
  if (event.key === "?") showKeys();
  else if (event.key === "l" && !document.querySelector("dialog[open]")) location.hash = "#/";
});
// A file that is dropped beside a form must not replace the page.
for (const kind of ["dragover", "drop"]) {
  addEventListener(kind, (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());
}
addEventListener("hashchange", route);
start();
