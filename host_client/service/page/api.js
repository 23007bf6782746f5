// Requests to the service. Errors are problems (RFC 9457) with a sentence to show.

/** An answer that is not 2xx, or none (status 0); `problem` is the service's problem (RFC 9457). */
export class Problem extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The service answered ${status}.`);
    this.status = status;
    this.problem = problem;
  }
}

let skew = 0;

/** Return the service's time in seconds since the epoch, as its deadlines must be counted down by its clock. */
export function now() {
  return Date.now() / 1000 + skew;
}

function learnTime(response) {
  const date = Date.parse(response.headers.get("date") ?? "");
  // The header has whole seconds, so a small difference means nothing.
  if (Number.isFinite(date)) skew = Math.abs(date - Date.now()) > 3000 ? (date - Date.now()) / 1000 : 0;
}

async function request(method, path, body, headers = {}) {
  const options = { method, headers: { accept: "application/json", ...headers }, credentials: "same-origin", cache: "no-store" };
  if (body !== undefined) {
    const isFile = body instanceof Uint8Array;
    options.body = isFile ? body : JSON.stringify(body);
    options.headers["content-type"] = isFile ? "application/octet-stream" : "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Problem(0, { detail: "The service cannot be reached. Try again; what arrived already is not done twice." });
  }
  learnTime(response);
  const text = await response.text();
  const answer = parsed(text);
  if (!response.ok) throw new Problem(response.status, answer ?? { title: response.statusText });
  return answer;
}

function parsed(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}

const at = (id, rest = "") => `api/sessions/${encodeURIComponent(id)}${rest}`;

/** Return a new idempotency key, with which a request may be sent again safely. */
export function idempotencyKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const api = {
  me: () => request("GET", "api/me"),
  login: (token) => request("POST", "api/login", { token }),
  logout: () => request("POST", "api/logout"),
  sessions: ({ status, before, limit = 50 } = {}) => {
    const query = new URLSearchParams({ limit });
    if (status) query.set("status", status);
    if (before) query.set("before", before);
    return request("GET", `api/sessions?${query}`);
  },
  create: (body, key) => request("POST", "api/sessions", body, { "idempotency-key": key }),
  session: (id) => request("GET", at(id)),
  send: (id, body, key) => request("POST", at(id, "/turns"), body, { "idempotency-key": key }),
  upload: (content, name) => request("POST", `api/files?${new URLSearchParams({ name })}`, content),
  attachmentUrl: (id, attachmentId) => at(id, `/attachments/${encodeURIComponent(attachmentId)}`),
  decide: (id, approvalId, body) => request("POST", at(id, `/approvals/${encodeURIComponent(approvalId)}`), body),
  answer: (id, questionId, body) => request("POST", at(id, `/questions/${encodeURIComponent(questionId)}`), body),
  interrupt: (id) => request("POST", at(id, "/interrupt")),
  command: (id, command) => request("POST", at(id, "/commands"), command),
  close: (id) => request("DELETE", at(id)),
  eventsUrl: (id, after) => at(id, `/events?after=${after}`),
};
