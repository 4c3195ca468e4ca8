// What the page asks of the server.

import { readEvents } from "./sse.js";

const KEY = "r1mac.key";

/** The server said no. `status` is HTTP's, or 0 where it did not answer at all. */
export class ServerError extends Error {
  constructor(message, status, retryAfterSeconds = null) {
    super(message);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export function apiKey() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function setApiKey(key) {
  try {
    if (key) localStorage.setItem(KEY, key);
    else localStorage.removeItem(KEY);
  } catch {
    // Asked for again after a reload.
  }
}

async function call(path, { body, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer: is `r1mac serve` still running?", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = `the server answered ${response.status}`;
  try {
    message = messageOf(await response.json()) ?? message;
  } catch {
    // A body that is no JSON says nothing more.
  }
  const after = Number(response.headers.get("Retry-After"));
  return new ServerError(message, response.status, after > 0 ? after : null);
}

const messageOf = (body) => (typeof body?.error === "string" ? body.error : body?.error?.message);

export const models = async () => (await (await call("/v1/models")).json()).data;
export const state = async (signal) => (await call("/r1mac/state", { signal })).json();
export const contexts = async (model) => (await call(`/r1mac/context?model=${encodeURIComponent(model)}`)).json();
export const chooseContext = async (model, tokens) =>
  (await call("/r1mac/context", { body: { model, context_tokens: tokens } })).json();
export const markup = async (text) => (await call("/r1mac/markup", { body: { text } })).json();

/** Steers a reply at work: "answer-now", "think-more", "pause", "resume", "cancel" or "hint". */
export const steer = (replyId, wish, body = {}) =>
  call(`/r1mac/replies/${encodeURIComponent(replyId)}/${wish}`, { body });

/**
 * Asks for a reply. `onBegin(replyId)` comes first, then `onChunk(chunk)` for each one.
 * Throws ServerError, or what `signal` threw; a stream that broke off is a ServerError of status 0.
 */
export async function chat(request, { signal, onBegin, onChunk }) {
  const response = await call("/v1/chat/completions", { body: request, signal });
  onBegin(response.headers.get("X-R1mac-Reply-Id"));
  let done = false;
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") {
        done = true;
        continue;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(messageOf(chunk) ?? "the reply failed", 500);
      onChunk(chunk);
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
  }
  if (!done) throw new ServerError("The connection was lost; what had been written is kept.", 0);
}
