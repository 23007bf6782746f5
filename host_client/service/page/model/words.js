// Words for tools, decisions, rules and reasons. Pure.

const VERBS = {
  Bash: ["run", "Running", "Ran", (i) => i.command],
  BashOutput: ["read the output of", "Reading the output of", "Read the output of", (i) => i.bash_id],
  Read: ["read", "Reading", "Read", (i) => i.file_path],
  Write: ["write", "Writing", "Wrote", (i) => i.file_path],
  Edit: ["edit", "Editing", "Edited", (i) => i.file_path],
  MultiEdit: ["edit", "Editing", "Edited", (i) => i.file_path],
  NotebookEdit: ["edit", "Editing", "Edited", (i) => i.notebook_path],
  Glob: ["look for files", "Looking for files", "Looked for files", (i) => i.pattern],
  Grep: ["search for", "Searching for", "Searched for", (i) => i.pattern],
  WebFetch: ["fetch", "Fetching", "Fetched", (i) => i.url],
  WebSearch: ["search the web for", "Searching the web for", "Searched the web for", (i) => i.query],
  Agent: ["start a subagent", "Subagent", "Subagent", (i) => i.description],
  Task: ["start a subagent", "Subagent", "Subagent", (i) => i.description],
  TodoWrite: ["update its plan", "Updating its plan", "Updated its plan", () => ""],
  AskUserQuestion: ["ask you", "Asking", "Asked", (i) => i.questions?.[0]?.question],
  StructuredOutput: ["give its answer", "Giving its answer", "Gave its answer", (i) => i],
};

const WISHES = {
  Bash: "run a command", Read: "read a file", Write: "write a file", Edit: "edit a file", MultiEdit: "edit a file", NotebookEdit: "edit a notebook",
  Glob: "look for files", Grep: "search in files", WebFetch: "fetch a page", WebSearch: "search the web", Agent: "start a subagent", Task: "start a subagent",
};

/** Return the action of an approval: "run a command". */
export function wish(name) {
  return Object.hasOwn(WISHES, name) ? WISHES[name] : `use ${toolName(name)}`;
}

/** Return {verb, object} for a call; `when` is "wants", "running" or "done". */
export function toolLine(name, input, when) {
  const known = Object.hasOwn(VERBS, name) ? VERBS[name] : null;
  if (known) return { verb: known[["wants", "running", "done"].indexOf(when)], object: text(known[3](input ?? {})) };
  const verb = { wants: "use", running: "Using", done: "Used" }[when];
  return { verb: `${verb} ${toolName(name)}`, object: firstText(input) };
}

function text(value) {
  return typeof value === "string" ? value : value === undefined || value === null ? "" : JSON.stringify(value);
}

function firstText(input) {
  return text(Object.values(input ?? {}).find((value) => typeof value === "string"));
}

/** Return a tool's name for people: "github: search" for mcp__github__search. */
export function toolName(name) {
  const parts = /^mcp__(.+?)__(.+)$/s.exec(name);
  return parts ? `${parts[1]}: ${parts[2]}` : name;
}

export const STATUS = {
  starting: "Starting",
  running: "Running",
  needs_you: "Needs you",
  idle: "Idle",
  closed: "Closed",
  failed: "Failed",
};

export const CLOSED = {
  closed: "Closed by a person",
  inactive: "Closed after a time without activity",
  shutdown: "Closed because the service was shut down",
  ended: "The agent ended",
  failed: "The session failed",
  lost: "Lost when the service was restarted",
};

const AUTOMATIC = { "runner:no-one-to-ask": "nobody was there to ask" };

/** Return the person who decided; null if there is none. */
export function decider(name, me) {
  if (!name) return null;
  if (Object.hasOwn(AUTOMATIC, name)) return AUTOMATIC[name];
  return me && name === me ? "you" : name;
}

/** Return how a wait ended, in one phrase: "Denied by ana". */
export function decisionLine(resolved, me) {
  const who = decider(resolved.decidedBy, me);
  const verb = {
    allow: "Allowed",
    allow_edited: "Allowed with changes",
    deny: "Denied",
    answered: "Answered",
    timeout: "Expired: nobody answered in time",
    cancelled: "Cancelled: the turn was ended",
  }[resolved.decision];
  if (!who || resolved.decision === "timeout") return verb ?? resolved.decision;
  return `${verb ?? resolved.decision}${Object.hasOwn(AUTOMATIC, resolved.decidedBy) ? ":" : " by"} ${who}`;
}

// Of a command what was done, and what was asked for if it was refused.
const COMMANDS = {
  set_model: (c) => [`Model set to ${c.model ?? "the default"}`, `set the model to ${c.model ?? "the default"}`],
  set_permission_mode: (c) => [`Permission mode set to ${c.mode}`, `set the permission mode to ${c.mode}`],
  stop_task: () => ["Background work stopped", "stop background work"],
  rewind_files: () => ["Files set back to before a prompt", "set files back to before a prompt"],
  reconnect_mcp_server: (c) => [`MCP server ${c.server_name} connected again`, `connect the MCP server ${c.server_name} again`],
  toggle_mcp_server: (c) => (c.enabled ? [`MCP server ${c.server_name} switched on`, `switch on the MCP server ${c.server_name}`] : [`MCP server ${c.server_name} switched off`, `switch off the MCP server ${c.server_name}`]),
};

/** Return a command to the agent and its outcome in one phrase: "Model set to opus by ana". */
export function commandLine(command, error, me) {
  const name = text(command.type);
  const [done, asked] = Object.hasOwn(COMMANDS, name) ? COMMANDS[name](command) : [name, name];
  const who = decider(command.requested_by, me);
  if (error) return `Refused to ${asked}${who ? `, asked for by ${who}` : ""}: ${error}`;
  return `${done}${who ? ` by ${who}` : ""}`;
}

// The reason that the runner gives the agent if a person gave none.
const NO_REASON = "The person in charge refused this.";

/** Return a person's words with a decision: the answers to a question or the reason of a denial; "" if none. */
export function saidWith({ kind, resolved }, result) {
  if (kind === "question") return Object.values(resolved.answers ?? {}).map(text).join("; ");
  const isByPerson = resolved.decision === "deny" && !Object.hasOwn(AUTOMATIC, resolved.decidedBy ?? "");
  const reason = isByPerson && result ? contentText(result.content).trim() : "";
  return reason === NO_REASON ? "" : reason;
}

/**
 * Return what "remember" would add, one line each; empty if nothing is suggested. As in the runner: a change of mode
 * only if no rule is suggested.
 */
export function rememberedRules(suggestions) {
  const all = (suggestions ?? []).filter((each) => each && typeof each === "object");
  const hasRules = all.some((each) => each.type === "addRules");
  return all.filter((each) => !hasRules || each.type !== "setMode").flatMap(ruleLines);
}

function ruleLines(update) {
  if (update.type === "setMode" && update.mode === "acceptEdits") return ["all edits (mode acceptEdits)"];
  if (update.type === "setMode") return [`permission mode ${text(update.mode)}`];
  if (Array.isArray(update.directories)) return update.directories.map((each) => `directory ${text(each)}`);
  if (Array.isArray(update.rules)) {
    const behavior = update.behavior && update.behavior !== "allow" ? `${text(update.behavior)} ` : "";
    return update.rules.map((rule) => {
      const content = rule.ruleContent ?? rule.rule_content;
      return `${behavior}${text(rule.toolName ?? rule.tool_name)}${content ? `(${text(content)})` : ""}`;
    });
  }
  return [JSON.stringify(update)];
}


/** Return a tool's result as text: strings unchanged, blocks joined, pictures by their type and size. */
export function contentText(content) {
  if (typeof content === "string") return content;
  if (content === null || content === undefined) return "";
  if (Array.isArray(content)) return content.map(blockText).join("\n");
  return JSON.stringify(content, null, 2);
}

function blockText(block) {
  if (block?.type === "text" && typeof block.text === "string") return block.text;
  if (block?.type === "image") {
    return `[image ${text(block.source?.media_type)}, ${Math.round((text(block.source?.data).length * 3) / 4000)} kB]`;
  }
  return typeof block === "string" ? block : JSON.stringify(block, null, 2);
}
