// The tab with which an operator changes the running agent: model, permissions, background work, MCP servers, context.

import { oneLine } from "../model/safe.js";
import { h } from "../parts/dom.js";

const MODES = [
  ["default", "Ask for what needs it (default)"],
  ["acceptEdits", "Edit files without asking"],
  ["plan", "Plan only, change nothing"],
  ["dontAsk", "Deny what would need asking"],
  ["auto", "A model decides"],
  ["bypassPermissions", "Ask for nothing"],
];

export class AgentTab {
  /** `onCommand(command)` sends a command to the agent. */
  constructor(onCommand) {
    this.onCommand = onCommand;
    this.model = h("input", { type: "text", autocomplete: "off", spellcheck: "false" });
    this.mode = h("select", {}, MODES.map(([value, name]) => h("option", { value }, name)));
    this.edited = new Set(); // fields whose choice has not been sent, or not been answered
    for (const field of [this.model, this.mode]) field.addEventListener("input", () => this.edited.add(field));
    this.outcomes = 0;
    this.tasks = h("ul.agent-list");
    this.servers = h("ul.agent-list");
    this.context = h("div.context");
    const ask = (type, name) => h("button.small", { type: "button", onclick: () => onCommand({ type }) }, name);
    this.controls = h(
      "fieldset.agent",
      {},
      this.form("Model", this.model, () => this.setModel()),
      this.form("Permissions", this.mode, () => onCommand({ type: "set_permission_mode", mode: this.mode.value })),
      h("section", {}, h("h4", {}, "Background work"), this.tasks),
      h("section", {}, h("h4", {}, "Context of the model"), this.context, ask("get_context_usage", "Show")),
      h("section", {}, h("h4", {}, "MCP servers"), this.servers, ask("get_mcp_status", "Show")),
    );
    this.node = h("div.tab-body", {}, this.controls);
  }

  /** Return a field with a button; only the button sends what was chosen. */
  form(name, field, send) {
    const onsubmit = (event) => {
      event.preventDefault();
      send();
    };
    return h("form.agent-row", { onsubmit }, h("label.field.grow", {}, h("span", {}, name), field), h("button.small", { type: "submit", "aria-label": `Use this: ${name}` }, "Use"));
  }

  setModel() {
    const model = this.model.value.trim();
    this.onCommand({ type: "set_model", ...(model ? { model } : {}) });
  }

  update(state) {
    this.controls.disabled = Boolean(state.closed) || !state.start;
    if (state.outcomes !== this.outcomes) this.edited.clear(); // a choice that was refused must not stay
    this.outcomes = state.outcomes;
    if (!this.edited.has(this.model)) this.model.value = state.model ?? "";
    if (!this.edited.has(this.mode)) this.mode.value = state.permissionMode ?? "default";
    this.redraw("tasks", [state.background, state.descriptions.size], () => this.tasks.replaceChildren(...this.taskRows(state)));
    this.redraw("context", state.context, () => this.context.replaceChildren(...contextRows(state.context)));
    this.redraw("servers", state.mcpServers, () => this.servers.replaceChildren(...this.serverRows(state.mcpServers)));
  }

  /** Draw a part again only if what it shows has changed, so that its buttons keep the focus. */
  redraw(part, shown, draw) {
    const key = JSON.stringify(shown);
    this.keys ??= {};
    if (this.keys[part] === key) return;
    this.keys[part] = key;
    draw();
  }

  taskRows({ background, descriptions }) {
    if (!background.length) return [h("li.muted", {}, "Nothing runs in the background.")];
    const stop = (id) => h("button.small", { type: "button", onclick: () => this.onCommand({ type: "stop_task", task_id: id }) }, "Stop");
    return background.map((id) => h("li.agent-row", {}, h("span.grow", {}, oneLine(descriptions.get(id) || id, 120)), stop(id)));
  }

  serverRows(servers) {
    if (servers === null) return [];
    if (!servers.length) return [h("li.muted", {}, "The agent has none.")];
    const send = (command, name) => h("button.small", { type: "button", onclick: () => this.send(command) }, name);
    return servers.map(({ name, status, error }) => {
      const isOff = status === "disabled";
      const again = status === "failed" ? send({ type: "reconnect_mcp_server", server_name: name }, "Connect again") : null;
      const toggle = send({ type: "toggle_mcp_server", server_name: name, enabled: isOff }, isOff ? "Switch on" : "Switch off");
      const about = [status, error].filter(Boolean).join(": ");
      return h("li.agent-row", {}, h("span.grow", {}, oneLine(name ?? "", 60), " ", h("span.muted", {}, oneLine(about, 120))), again, toggle);
    });
  }

  /** Send a command that changes a server, then ask for the servers again. */
  async send(command) {
    await this.onCommand(command);
    this.onCommand({ type: "get_mcp_status" });
  }
}

function contextRows(usage) {
  if (usage === null) return [];
  const { used, most, parts } = usage;
  return [
    h("p", {}, `${used.toLocaleString()} of ${most.toLocaleString()} tokens (${Math.round((100 * used) / most)} %)`),
    h("table.tool-table", {}, h("tbody", {}, parts.map(({ name, tokens }) => h("tr", {}, h("th", { scope: "row" }, oneLine(name ?? "", 60)), h("td", {}, tokens.toLocaleString()))))),
  ];
}
