// The form for a new session.

import { api, idempotencyKey } from "../api.js";
import { openDialog } from "../parts/dialog.js";
import { h, setText } from "../parts/dom.js";
import { AttachmentList } from "./attach.js";

const MODES = [
  ["", "Ask for what needs it (default)"],
  ["acceptEdits", "Edit files without asking"],
  ["plan", "Plan only, change nothing"],
  ["dontAsk", "Deny what would need asking"],
];

/** Show the form; `me` is the caller, whose name is the default user. */
export function showCreate(me, onCreated) {
  const fields = {
    prompt: h("textarea", { name: "prompt", rows: "5", required: true, placeholder: "What should Claude do?" }),
    model: text("model", "The service's own"),
    allowed_tools: text("allowed_tools", "Read, Bash(npm test:*)"),
    max_budget_usd: number("max_budget_usd", { min: "0.01", step: "0.01", placeholder: "No limit" }),
    permission_mode: h("select", { name: "permission_mode" }, MODES.map(([value, name]) => h("option", { value }, name))),
    disallowed_tools: text("disallowed_tools", "WebFetch"),
    max_turns: number("max_turns", { min: "1", step: "1", placeholder: "No limit" }),
    approval_timeout: number("approval_timeout", { min: "1", step: "1", placeholder: "300" }),
    user_id: text("user_id", me.name),
    system_prompt: h("textarea", { name: "system_prompt", rows: "3", placeholder: "Claude Code's own" }),
  };
  const message = h("p.card-message", { hidden: true, role: "alert" });
  const submit = h("button.primary", { type: "submit" }, "Start session");
  const key = { value: null };
  const form = h("form.create", { onsubmit: (event) => send(event), oninput: () => (key.value = null) });
  const files = new AttachmentList(form, () => (key.value = null));
  form.append(...layout(fields, files), message, h("div.actions", {}, submit));
  const { close } = openDialog("New session", form, { className: "dialog.wide" });
  fields.prompt.focus();
  form.addEventListener("keydown", (event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && form.requestSubmit());

  async function send(event) {
    event.preventDefault();
    if (submit.disabled) return;
    submit.disabled = true;
    message.hidden = true;
    try {
      const attachments = await files.ready();
      if (attachments === null) throw new Error("A file cannot be sent: remove it, or try again.");
      // The same form, sent again after a failure, creates one session, not two.
      key.value ??= idempotencyKey();
      const session = await api.create({ ...bodyOf(fields), ...(attachments.length && { attachments }) }, key.value);
      close();
      onCreated(session);
    } catch (problem) {
      setText(message, problem.message);
      message.hidden = false;
    } finally {
      submit.disabled = false;
    }
  }
}

function layout(fields, files) {
  return [
    labelled("Prompt", fields.prompt),
    h("div.prompt-files", {}, files.list, files.button),
    h("div.pair", {}, labelled("Model", fields.model), labelled("Budget, US dollars", fields.max_budget_usd)),
    h("div.pair", {}, labelled("Permissions", fields.permission_mode), labelled("Tools allowed without asking", fields.allowed_tools)),
    h("details.more", {}, h("summary", {}, "More"), h("div.pair", {}, labelled("Tools refused", fields.disallowed_tools), labelled("Most requests a turn", fields.max_turns)), h("div.pair", {}, labelled("Seconds to decide", fields.approval_timeout), labelled("User", fields.user_id)), labelled("System prompt", fields.system_prompt)),
  ];
}

function bodyOf(fields) {
  const body = {};
  for (const [name, field] of Object.entries(fields)) {
    const value = field.value.trim();
    if (!value) continue;
    if (name.endsWith("_tools")) body[name] = toolList(value);
    else body[name] = field.type === "number" ? Number(value) : value;
  }
  return body;
}

/** Split rules at commas that are not inside parentheses. */
export function toolList(value) {
  return value.split(/,(?![^(]*\))/).map((each) => each.trim()).filter(Boolean);
}

function text(name, placeholder) {
  return h("input", { type: "text", name, placeholder, autocomplete: "off", spellcheck: "false" });
}

function number(name, props) {
  return h("input", { type: "number", name, inputmode: "decimal", ...props });
}

function labelled(name, field) {
  return h("label.field", {}, h("span", {}, name), field);
}
