// The time strip's segments: when the model or a tool was at work. Changes a draft of the reducer; no I/O.
//
// A lane is the main agent ("") or a subagent (the id of the tool call that started it). The model works from the
// start of a turn, or from the end of the last tool call, until its last block; then its tools work.

/** The lanes of a draft. Lanes and segments are replaced, never changed in place. */
export class Lanes {
  constructor(draft) {
    this.draft = draft;
  }

  beginTurn(at) {
    const lane = this.lane("", at.ts);
    this.closeModel(lane.key, at.ts);
    this.change("", { step: lane.step, messageId: null, hasSpoken: false, model: this.add("model", "", at, { label: "model" }) });
  }

  /** Add a block of the model; return the number of its request and whether it is the request's first block. */
  spoke(key, at, messageId) {
    let lane = this.lane(key, at.ts);
    const isNew = !lane.hasSpoken || (messageId !== null && lane.messageId !== null && messageId !== lane.messageId);
    if (lane.model === null) this.change(key, { model: this.add("model", key, { ts: lane.spokeAt ?? at.ts, id: at.id }, { label: "model" }) });
    lane = this.lane(key, at.ts);
    this.changeSegment(lane.model, { end: at.ts, ...(isNew ? { id: at.id } : {}) });
    const step = isNew ? lane.step + 1 : lane.step;
    this.change(key, { step, hasSpoken: true, spokeAt: at.ts, messageId: messageId ?? lane.messageId });
    return { step, isFirst: isNew };
  }

  beginTool(key, at, toolUseId, name) {
    const open = new Map(this.lane(key, at.ts).open);
    open.set(toolUseId, this.add("tool", key, at, { label: name, toolUseId }));
    this.change(key, { open });
  }

  /** End a call; after the lane's last open call, the model works again. */
  endTool(toolUseId, at, outcome) {
    const lane = this.draft.lanes.find((each) => each.open.has(toolUseId));
    if (!lane) return;
    const open = new Map(lane.open);
    this.changeSegment(open.get(toolUseId), { end: at.ts, outcome });
    open.delete(toolUseId);
    this.change(lane.key, { open });
    const own = this.draft.lanes.find((each) => each.key === toolUseId);
    if (own) this.closeLane(own.key, at.ts);
    if (open.size) return;
    this.change(lane.key, {
      hasSpoken: false,
      messageId: null,
      model: lane.isOver ? null : this.add("model", lane.key, at, { label: "model" }),
    });
  }

  beginWait(key, at, requestId, toolUseId, name) {
    this.lane(key, at.ts);
    this.add("wait", key, at, { label: name, requestId, toolUseId });
  }

  endWait(requestId, at, outcome) {
    const index = this.draft.segments.findLastIndex((each) => each.requestId === requestId);
    if (index >= 0) this.changeSegment(index, { end: at.ts, outcome });
  }

  /** End the main agent's turn; subagents in the background go on. */
  endTurn(ts) {
    const lane = this.lane("", ts);
    for (const index of lane.open.values()) this.changeSegment(index, { end: ts, outcome: "error" });
    this.closeModel("", ts);
    this.change("", { open: new Map() });
  }

  endAll(ts) {
    for (const lane of this.draft.lanes) this.closeModel(lane.key, ts);
    this.draft.segments.forEach((segment, index) => {
      if (segment.end === null) this.changeSegment(index, { end: ts, outcome: "cut" });
    });
    this.draft.lanes = this.draft.lanes.map((lane) => ({ ...lane, open: new Map() }));
  }

  closeLane(key, ts) {
    this.closeModel(key, ts);
    this.change(key, { isOver: true });
  }

  /** Close a lane's model segment, which reaches to its last block; one without a block ends now. */
  closeModel(key, ts) {
    const lane = this.draft.lanes.find((each) => each.key === key);
    if (!lane || lane.model === null) return;
    if (this.draft.segments[lane.model].end === null) this.changeSegment(lane.model, { end: ts, outcome: "silent" });
    this.change(key, { model: null });
  }

  lane(key, ts) {
    const found = this.draft.lanes.find((each) => each.key === key);
    if (found) return found;
    const call = this.draft.items[this.draft.toolItems.get(key)];
    const label = key === "" ? "Agent" : String(call?.input?.description ?? "Subagent");
    const since = call ? (call.request?.resolved?.ts ?? call.ts) : ts;
    const lane = {
      key, label, since, step: 0, messageId: null, hasSpoken: false, spokeAt: since, open: new Map(), model: null, isOver: false,
    };
    this.draft.lanes.push(lane);
    return lane;
  }

  change(key, change) {
    const index = this.draft.lanes.findIndex((each) => each.key === key);
    this.draft.lanes[index] = { ...this.draft.lanes[index], ...change };
  }

  add(kind, lane, at, fields) {
    this.draft.segments.push({ kind, lane, start: at.ts, end: null, id: at.id, outcome: null, ...fields });
    return this.draft.segments.length - 1;
  }

  changeSegment(index, change) {
    this.draft.segments[index] = { ...this.draft.segments[index], ...change };
  }
}
