// The state of the page, computed from a session's log. Pure: reduce(state, entries) returns a new state.
//
// Stored and live events are handled alike. An entry is {id, event}; the id is the event's number in the log, null for
// live events. Entries that were reduced before are skipped, so a log may be read twice.

import { Lanes } from "./lanes.js";

/** The state before the first event. Items, segments, lanes and events are arrays in order of appearance. */
export const initial = Object.freeze({
  lastId: 0,
  firstTs: null,
  lastTs: null,
  status: "starting",
  closed: null,
  start: null,
  sandbox: null,
  traceId: null,
  turn: 0,
  turnSince: null,
  promptPlaces: Object.freeze([]), // indexes in items of the prompts whose turns have not begun, oldest first
  costUsd: null,
  items: Object.freeze([]),
  live: null,
  requests: new Map(), // approvals and questions by id
  waiting: Object.freeze([]), // the requests that wait, oldest first
  background: Object.freeze([]), // ids of the tasks that run in the background
  descriptions: new Map(), // of these tasks, by id
  model: null,
  permissionMode: null,
  outcomes: 0, // number of commands to the agent that have been carried out or refused
  context: null, // the last answer to get_context_usage
  mcpServers: null, // the last answer to get_mcp_status
  segments: Object.freeze([]),
  lanes: Object.freeze([]),
  events: Object.freeze([]),
  toolItems: new Map(), // index in items by tool_use_id
});

/** Return the state after one event. */
export function reduceOne(state, event, id = null) {
  return reduce(state, [{ event, id }]);
}

/** Return the state after some entries; the same object if none of them is new. */
export function reduce(state, entries) {
  const fresh = entries.filter((entry) => entry.id === null || entry.id > state.lastId);
  if (!fresh.length) return state;
  const draft = {
    ...state,
    items: [...state.items],
    events: [...state.events],
    segments: [...state.segments],
    lanes: [...state.lanes],
    waiting: [...state.waiting],
    promptPlaces: [...state.promptPlaces],
    requests: new Map(state.requests),
    toolItems: new Map(state.toolItems),
  };
  for (const { event, id } of fresh) take(draft, event, id);
  return draft;
}

function take(draft, event, id) {
  if (id !== null) {
    if (id <= draft.lastId) return;
    if (id > draft.lastId + 1) addGap(draft, event.ts, draft.lastId + 1, id - 1);
    draft.lastId = id;
    draft.events.push({ id, event });
    if (draft.firstTs === null) draft.firstTs = event.ts;
    draft.lastTs = Math.max(draft.lastTs ?? 0, event.ts);
    if (event.trace_id) draft.traceId = event.trace_id;
  }
  const handler = Object.hasOwn(HANDLERS, event.type) ? HANDLERS[event.type] : null;
  if (handler) handler(draft, event.data ?? {}, { id, ts: event.ts });
}

const HANDLERS = {
  prompt: addPrompt,
  sandbox: (draft, data, at) => {
    draft.sandbox = data;
    add(draft, "note", at, { note: "sandbox", data });
  },
  adopted: (draft, data, at) => add(draft, "note", at, { note: "adopted", data }),
  start: (draft, data, at) => {
    draft.start = data;
    draft.model = data.model;
    draft.permissionMode = data.permission_mode;
    if (data.resumed) add(draft, "note", at, { note: "resumed", data });
  },
  turn_start: (draft, data, at) => {
    draft.turn = data.turn;
    draft.turnSince = at.ts;
    const messageId = draft.start?.sdk_options?.includes("enable_file_checkpointing") ? data.user_message_id ?? null : null;
    if (data.prompt_size > 0) change(draft, draft.promptPlaces.shift(), { delivery: null, messageId });
    new Lanes(draft).beginTurn(at);
    settle(draft);
  },
  text_delta: (draft, data) => {
    const goesOn = draft.live && draft.live.messageId === (data.message_id ?? null);
    const before = goesOn ? draft.live.text : "";
    draft.live = { messageId: data.message_id ?? null, text: before + data.text, isCut: goesOn && draft.live.isCut };
  },
  text: (draft, data, at) => addBlock(draft, "text", data, at),
  thinking: (draft, data, at) => addBlock(draft, "thinking", data, at),
  tool_use: addTool,
  tool_result: endTool,
  task: (draft, data) => {
    const others = draft.background.filter((each) => each !== data.task_id);
    draft.background = (data.state === "running" ? [...others, data.task_id] : others).slice(-100);
    draft.descriptions = new Map([...draft.descriptions, [data.task_id, data.description]].slice(-100));
    changeTool(draft, data.tool_use_id, { task: data.state });
  },
  approval_request: (draft, data, at) =>
    ask(draft, "approval", data.approval_id, data, at, {
      toolName: data.tool_name,
      input: data.input,
      inputSha256: data.input_sha256,
      reason: data.reason ?? null,
      suggestions: data.suggestions ?? [],
    }),
  question_request: (draft, data, at) =>
    ask(draft, "question", data.question_id, data, at, { toolName: "AskUserQuestion", questions: data.questions }),
  approval_resolved: (draft, data, at) => resolve(draft, data.approval_id, data, at),
  question_resolved: (draft, data, at) => resolve(draft, data.question_id, data, at),
  result: endTurn,
  command_result: endCommand,
  agent_changed: (draft, data) => {
    draft.model = data.model ?? draft.model;
    draft.permissionMode = data.permission_mode ?? draft.permissionMode;
  },
  error: (draft, data, at) => add(draft, "error", at, { data }),
  log: (draft, data, at) => add(draft, "log", at, { stream: data.stream, text: data.text }),
  end: (draft, data, at) => {
    draft.live = null;
    new Lanes(draft).endAll(at.ts);
  },
  closed: (draft, data, at) => {
    draft.closed = data;
    draft.live = null;
    draft.background = [];
    if (typeof data.cost_usd === "number") draft.costUsd = data.cost_usd;
    new Lanes(draft).endAll(at.ts);
    for (const request of draft.waiting) draft.requests.set(request.id, { ...request, isCut: true });
    draft.waiting = [];
    cutOpenTools(draft);
    for (const place of draft.promptPlaces) change(draft, place, { delivery: "unread" });
    tellOnce(draft, data);
    add(draft, "note", at, { note: "closed", data });
    settle(draft);
  },
  gap: (draft, data) => {
    addGap(draft, draft.lastTs ?? 0, data.first, data.last);
    draft.lastId = Math.max(draft.lastId, data.last);
  },
  // An event of the page itself: the stream was lost and resumed, so live text may be missing.
  reconnected: (draft) => {
    if (draft.live) draft.live = { ...draft.live, text: "", isCut: true };
  },
};

function add(draft, kind, at, fields) {
  const lane = fields.lane ?? "";
  draft.items.push({ kind, id: at.id, ts: at.ts, lane, step: 0, isFirst: false, ...fields });
  return draft.items.length - 1;
}

function addGap(draft, ts, first, last) {
  add(draft, "gap", { id: null, ts }, { first, last });
}

/** Add a prompt; one with an error does not begin, also if it is in the log already. */
function addPrompt(draft, data, at) {
  const delivery = data.error ? "unsent" : draft.turnSince !== null || draft.promptPlaces.length ? "queued" : null;
  const fields = { text: data.text, sentBy: data.sent_by ?? null, turnId: data.turn_id, attachments: data.attachments ?? [], error: data.error ?? null, delivery };
  const earlier = data.error ? draft.promptPlaces.find((place) => draft.items[place].turnId === data.turn_id) : undefined;
  const place = earlier ?? add(draft, "prompt", at, fields);
  if (earlier !== undefined) change(draft, place, fields);
  draft.promptPlaces = draft.promptPlaces.filter((each) => each !== place);
  if (!data.error) draft.promptPlaces.push(place);
  settle(draft);
}

/** Add a block of text or thinking, and extend its lane's model segment to its time. */
function addBlock(draft, kind, data, at) {
  const lane = data.parent_tool_use_id ?? "";
  const step = new Lanes(draft).spoke(lane, at, data.message_id ?? null);
  if (lane === "" && kind === "text") draft.live = null;
  add(draft, kind, at, { lane, text: data.text, ...step });
}

function addTool(draft, data, at) {
  const lane = data.parent_tool_use_id ?? "";
  const lanes = new Lanes(draft);
  const step = lanes.spoke(lane, at, null);
  if (lane === "") draft.live = null;
  const asked = [...draft.requests.values()].findLast((request) => request.toolUseId === data.id) ?? null;
  const place = add(draft, "tool", at, {
    lane,
    ...step,
    toolUseId: data.id,
    name: data.name,
    input: data.input,
    request: asked,
    result: null,
    task: null,
    isCut: false,
  });
  draft.toolItems.set(data.id, place);
  lanes.beginTool(lane, at, data.id, data.name);
}

function endTool(draft, data, at) {
  const result = {
    id: at.id,
    ts: at.ts,
    content: data.content,
    isError: data.is_error,
    durationMs: data.duration_ms,
    bytes: data.bytes,
    isTruncated: data.truncated === true,
    errorType: data.error_type ?? null,
    executedInput: data.executed_input ?? null,
    deniedBy: data.denied_by ?? null,
  };
  const item = changeTool(draft, data.tool_use_id, { result });
  new Lanes(draft).endTool(data.tool_use_id, at, outcome(item, result));
}

/** Return how a call ended: ok, denied or error. */
function outcome(item, result) {
  if (result.deniedBy !== null || ["deny", "timeout", "cancelled"].includes(item?.request?.resolved?.decision)) return "denied";
  return result.isError ? "error" : "ok";
}

function changeTool(draft, toolUseId, fields) {
  return change(draft, draft.toolItems.get(toolUseId), fields);
}

function change(draft, place, fields) {
  if (place === undefined) return null;
  draft.items[place] = { ...draft.items[place], ...fields };
  return draft.items[place];
}

/** Mark the error that a `closed` event repeats, to be hidden; of a lost session, also its vain adoption. */
function tellOnce(draft, { reason, message }) {
  const tells = (item) => item.kind === "error" && message && item.data.message === message;
  const places = [draft.items.findLastIndex(tells)];
  if (reason === "lost") places.push(draft.items.findLastIndex((item) => item.note === "adopted"));
  for (const place of places) if (place >= 0) change(draft, place, { isTold: true });
}

function cutOpenTools(draft) {
  for (const [toolUseId, place] of draft.toolItems) {
    if (draft.items[place].result === null) changeTool(draft, toolUseId, { isCut: true });
    if (draft.items[place].task === "running") changeTool(draft, toolUseId, { task: "stopped" });
  }
}

function ask(draft, kind, id, data, at, fields) {
  const item = draft.items[draft.toolItems.get(data.tool_use_id)];
  const request = {
    kind,
    id,
    eventId: at.id,
    ts: at.ts,
    toolUseId: data.tool_use_id,
    lane: item?.lane ?? "",
    expiresAt: data.expires_at,
    resolved: null,
    ...fields,
  };
  draft.requests.set(id, request);
  draft.waiting.push(request);
  changeTool(draft, data.tool_use_id, { request });
  new Lanes(draft).beginWait(request.lane, at, id, data.tool_use_id, request.toolName);
  settle(draft);
}

function resolve(draft, id, data, at) {
  const before = draft.requests.get(id);
  const resolved = {
    decision: data.decision,
    decidedBy: data.decided_by ?? null,
    waitMs: data.wait_ms,
    ts: at.ts,
    answers: data.answers ?? null,
    updatedInput: data.updated_input ?? null,
  };
  draft.waiting = draft.waiting.filter((request) => request.id !== id);
  if (before) {
    const request = { ...before, resolved };
    draft.requests.set(id, request);
    changeTool(draft, request.toolUseId, { request });
    new Lanes(draft).endWait(id, at, data.decision);
  }
  settle(draft);
}

function endTurn(draft, data, at) {
  draft.live = null;
  draft.turnSince = null;
  draft.costUsd = data.total_cost_usd;
  new Lanes(draft).endTurn(at.ts);
  add(draft, "result", at, {
    turn: data.turn,
    isError: data.is_error,
    subtype: data.subtype,
    text: data.result,
    costUsd: data.cost_usd,
    durationMs: data.duration_ms,
    errorType: data.error_type ?? null,
  });
  settle(draft);
}

/** Take the outcome of a command: a change is a note in the transcript, an answer a figure of the state. */
function endCommand(draft, data, at) {
  const command = texts(data.command);
  const error = data.error ?? null;
  const { type = "" } = command;
  draft.outcomes += 1;
  if (error === null) {
    if (type === "set_model") draft.model = command.model ?? null;
    if (type === "set_permission_mode") draft.permissionMode = command.mode ?? null;
    if (type === "get_context_usage") draft.context = contextUsage(data.value);
    if (type === "get_mcp_status") draft.mcpServers = rows(data.value).map(texts);
  }
  if (error !== null || !type.startsWith("get_")) add(draft, "note", at, { note: "command", data: { command, error } });
}

/** Return the fields of an object that are texts or booleans: a sandbox can send any value. */
function texts(value) {
  return Object.fromEntries(Object.entries(value ?? {}).filter(([, each]) => ["string", "boolean"].includes(typeof each)));
}

/** Return the objects in a list, within a limit. */
function rows(value) {
  return (Array.isArray(value) ? value : []).slice(0, 100).filter((each) => each !== null && typeof each === "object");
}

function contextUsage(value) {
  const [used, most] = [number(value?.totalTokens), number(value?.maxTokens)];
  if (!most) return null;
  const parts = rows(value.categories).map((each) => ({ ...texts(each), tokens: number(each.tokens) }));
  return { used, most, parts: parts.filter(({ tokens, kind }) => tokens > 0 && kind !== "free") };
}

function number(value) {
  return typeof value === "number" && value >= 0 ? value : 0;
}

/** Set the session's status, which follows from the rest of the state. */
function settle(draft) {
  if (draft.closed) draft.status = ["failed", "lost"].includes(draft.closed.reason) ? "failed" : "closed";
  else if (draft.waiting.length) draft.status = "needs_you";
  else if (draft.turnSince !== null) draft.status = "running";
  else if (draft.turn === 0 && (!draft.start || draft.promptPlaces.length)) draft.status = "starting";
  else draft.status = draft.promptPlaces.length ? "running" : "idle";
}
