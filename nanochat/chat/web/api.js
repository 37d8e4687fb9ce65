// Requests to the server that this page came from, and its streams of events.

const KEY = "nanochat.key"; // in sessionStorage: gone with the tab

let key = null;
try {
  key = sessionStorage.getItem(KEY);
} catch {
  // Then it is asked for again after a reload.
}

/** Use this API key from now on. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // See above.
  }
}

/** Whether a key has been given. */
export const hasKey = () => key !== null;

/** An error of a request. `kind` is network, broken, key, too_long, busy, draining, not_ready or other; `retryAfter` is in seconds. */
export class ApiError extends Error {
  constructor(kind, message = "", retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("network", String(error));
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // A proxy's page, perhaps: the status says enough.
  }
  const wait = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 0, 0), 60);
  return new ApiError(kindOf(response.status, said.code), said.message ?? `${response.status} ${response.statusText}`, wait);
}

function kindOf(status, code) {
  if (code === "context_length_exceeded" || status === 413) return "too_long";
  if (status === 401) return "key";
  if (status === 429) return "busy";
  if (status === 503 && !/^(training|plan)_/.test(code)) return code === "model_not_ready" ? "not_ready" : "draining";
  return "other";
}

/** The model that answers and the run in training, as {model, training, last, launch, hint}. */
export async function status() {
  return (await request("/api/training")).json();
}

/** All runs, as {runs: [{name, stage, ...}]}. */
export const runs = async () => (await request("/api/runs")).json();

/** One run: {run, report, samples}. */
export const run = async (name) => (await request(`/api/runs/${encodeURIComponent(name)}`)).json();

/** The checkpoints that can be asked for: {models, default}. */
export const models = async () => (await request("/api/models")).json();

const post = (path, body) => request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** The plan of a training run {quickstart} or {profile, hours, data, run}, as `nanochat plan --json` has it. */
export const plan = async (wanted) => (await post("/api/train/plan", wanted)).json();

export const startTraining = (wanted) => post("/api/train", wanted);
export const stopTraining = () => post("/api/train/stop", {});
export const resumeTraining = () => post("/api/train/resume", {});

/** Save a run's report as a file. */
export async function saveReport(name) {
  const response = await request(`/api/runs/${encodeURIComponent(name)}/report.html`);
  save(`${name}.html`, await response.blob());
}

/** Let the browser save a file. */
export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/**
 * Ask for an answer. Yields {model}, {usage}, {tokens} with their log probabilities, {text}, {calculator: {expression, result}}, {dropped} and {finish} as they come.
 * Throws ApiError, or an AbortError after `signal`.
 */
export async function* answer(messages, settings, signal) {
  const body = JSON.stringify({ messages, stream: true, stream_options: { include_usage: true }, ...settings });
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body,
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError("other", chunk.error.message);
    if (chunk.usage) yield { usage: chunk.usage };
    if (chunk.checkpoint) yield { model: { run: chunk.model, ...chunk.checkpoint } };
    if (chunk.dropped_turns) yield { dropped: chunk.dropped_turns };
    for (const { delta, logprobs, finish_reason: finish } of chunk.choices) {
      if (logprobs?.content) yield { tokens: logprobs.content };
      if (delta?.content) yield { text: delta.content };
      if (delta?.calculator) yield { calculator: delta.calculator };
      if (finish) yield { finish };
    }
  }
  throw new ApiError("broken"); // the end came without [DONE]
}

// The data of each server-sent event.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError("broken", String(error));
  } finally {
    reader.cancel().catch(() => {}); // leaving early tells the server that nobody listens
  }
}
