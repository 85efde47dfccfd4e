// The hub's REST interface as the pages use it. Every failure is an ApiError whose message is a sentence for the user.

export class ApiError extends Error {
  constructor(message, { code = "", status = 0, log = null, problems = [] } = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.log = log;
    this.problems = problems; // of a policy or of attributes: {where, message, severity, line}
  }

  get signedOut() {
    return this.code === "signed_out";
  }
}

const UNREACHABLE = "The hub does not answer. Check your connection and try again.";
const CUT_OFF = "The connection to the hub ended before the notebook was ready. Try again.";

export class Api {
  // base ends with a slash ("/hub/api/"); clockSkew is milliseconds to add to this computer's clock for the hub's time.
  constructor({ base, xsrf, workspace }) {
    this.base = base;
    this.xsrf = xsrf;
    this.workspace = workspace;
    this.clockSkew = 0;
  }

  url(path, query = {}) {
    return `${this.base}${path}?${new URLSearchParams({ workspace: this.workspace, ...query })}`;
  }

  async request(method, path, { body, query, accept = "application/json" } = {}) {
    const headers = { "X-XSRFToken": this.xsrf, Accept: accept };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(this.url(path, query), {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        redirect: "manual", // a redirect of an API call can only lead to the sign-in page
        cache: "no-store",
      });
    } catch {
      throw new ApiError(UNREACHABLE, { code: "unreachable" });
    }
    const date = Date.parse(response.headers.get("Date") ?? "");
    if (date) this.clockSkew = date - Date.now();
    if (!response.ok) throw await failure(response);
    return response;
  }

  async json(method, path, body, query) {
    const response = await this.request(method, path, { body, query });
    if (response.status === 204) return null;
    try {
      return await response.json();
    } catch {
      throw new ApiError(UNREACHABLE, { code: "unreachable", status: response.status });
    }
  }

  list() {
    return this.json("GET", "notebooks");
  }

  create(name, template) {
    return this.json("POST", "notebooks", { name, template });
  }

  copy(name, copy) {
    return this.json("POST", `notebooks/${encodeURIComponent(name)}/copy`, { name: copy });
  }

  release(name) {
    return this.json("POST", `notebooks/${encodeURIComponent(name)}/release`, {});
  }

  forceUnlock(name) {
    return this.json("DELETE", `notebooks/${encodeURIComponent(name)}/lock`);
  }

  delete(name) {
    return this.json("DELETE", `notebooks/${encodeURIComponent(name)}`);
  }

  dismissNotice(id) {
    return this.json("DELETE", `notices/${encodeURIComponent(id)}`);
  }

  discardDraft(id) {
    return this.json("DELETE", `drafts/${id}`);
  }

  copyDraft(id, name) {
    return this.json("POST", `drafts/${id}/copy`, { name });
  }

  replaceByDraft(id) {
    return this.json("POST", `drafts/${id}/replace`, {});
  }

  versions(name) {
    return this.json("GET", `notebooks/${encodeURIComponent(name)}/versions`);
  }

  restore(name, version) {
    return this.json("POST", `notebooks/${encodeURIComponent(name)}/versions/${version}/restore`, {});
  }

  // left and right: "current", "version:ID" or "draft:ID".
  compare(name, left, right) {
    return this.json("GET", `notebooks/${encodeURIComponent(name)}/compare`, undefined, { left, right });
  }

  snapshot() {
    return this.json("GET", "snapshot");
  }

  refreshSnapshot() {
    return this.json("POST", "snapshot/refresh", {});
  }

  // What one may choose from, and what one's server runs with.
  profiles() {
    return this.json("GET", "profiles");
  }

  // For the next start; nothing is started or ended.
  chooseProfile(profile) {
    return this.json("PUT", "server", { profile });
  }

  restartServer(profile) {
    return this.json("POST", "server", { profile, restart: true });
  }

  servers() {
    return this.json("GET", "servers");
  }

  serverLog(user) {
    return this.json("GET", `servers/${encodeURIComponent(user)}/log`);
  }

  // server: "" for the default one. A slow end goes on after the answer.
  stopServer(user, server) {
    const own = server ? `servers/${encodeURIComponent(server)}` : "server";
    return this.request("DELETE", `users/${encodeURIComponent(user)}/${own}`);
  }

  // Takes the lock and starts the server; calls onProgress({phase, progress, message}) and resolves to the ready body.
  async open(name, onProgress) {
    const response = await this.request("POST", `notebooks/${encodeURIComponent(name)}/lock`, {
      body: {},
      accept: "text/event-stream, application/json;q=0.5",
    });
    if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) return response.json();
    try {
      for await (const event of events(response.body)) {
        if (event.phase === "ready") return event;
        if (event.phase === "failed") throw fromBody(event.error, response.status);
        onProgress(event);
      }
    } catch (error) {
      if (error instanceof ApiError) throw error;
      throw new ApiError(CUT_OFF, { code: "cut_off" });
    }
    throw new ApiError(CUT_OFF, { code: "cut_off" });
  }
}

function fromBody(error, status) {
  const { code, log, problems } = error;
  return new ApiError(error.message, { code, status, log: log?.length ? log : null, problems });
}

async function failure(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // Not JSON: an error page of the hub or of a proxy in front of it. The status tells enough.
  }
  const own = body?.error?.message && response.status !== 401 && body.error.code !== "http_403";
  if (own) return fromBody(body.error, response.status);
  // 403 without a reason of ours is JupyterHub's answer to a missing session or an outdated XSRF token.
  if (response.type === "opaqueredirect" || response.status === 401 || response.status === 403) {
    return new ApiError("You are signed out.", { code: "signed_out", status: response.status });
  }
  if (response.status >= 500) {
    return new ApiError("The hub could not do that just now. Try again in a moment.", { status: response.status });
  }
  return new ApiError(body?.message ?? `The hub refused this request (status ${response.status}).`, {
    status: response.status,
  });
}

// The JSON objects of a text/event-stream body, in order.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const frames = buffer.split(/\r?\n\r?\n/);
    buffer = frames.pop();
    for (const frame of frames) {
      const data = frame
        .split(/\r?\n/)
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}
