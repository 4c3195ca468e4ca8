// One reply while it is written: from the request to its end.

import { ServerError, chat, steer } from "./api.js";

const KEEP_EVERY_MS = 2000;
// So long may the server take to end a reply that is stopped; a step of a long prompt takes a while.
const PATIENCE_MS = 5000;

export class ReplyRun {
  /** `on` has changed(), progress(text), keep() and ended(). */
  constructor(conversation, reply, on) {
    Object.assign(this, { conversation, reply, on });
    this.abort = new AbortController();
    this.stopped = false;
    this.begunMs = null;
    this.keptMs = performance.now();
  }

  async run(request) {
    const { reply } = this;
    try {
      await chat(request, {
        signal: this.abort.signal,
        onBegin: (id) => { reply.id = id; this.on.changed(); },
        onChunk: (chunk) => this.#take(chunk),
      });
      reply.end ??= "stop";
    } catch (error) {
      this.#failed(error);
    }
    clearTimeout(this.patience);
    this.#measureThought();
    delete reply.id;
    delete reply.paused;
    this.on.ended();
  }

  /** Stops it in order, so that its counts still come; at once where the server does not answer. */
  async stop() {
    if (this.stopped || !this.reply.id) return this.abort.abort();
    this.stopped = true;
    this.patience = setTimeout(() => this.abort.abort(), PATIENCE_MS);
    try {
      await steer(this.reply.id, "cancel");
    } catch {
      this.abort.abort();
    }
  }

  async steer(wish, body) {
    try {
      await steer(this.reply.id, wish, body);
      if (wish === "pause" || wish === "resume") this.reply.paused = wish === "pause";
    } catch (error) {
      this.reply.notices.push(error.message);
    }
    this.on.changed();
  }

  #take(chunk) {
    const { reply } = this;
    if (chunk.model) reply.model = chunk.model;
    const choice = chunk.choices?.[0];
    const thought = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
    if (thought) {
      this.begunMs ??= performance.now();
      reply.thought += thought;
    }
    if (choice?.delta?.content) {
      this.#measureThought();
      reply.answer += choice.delta.content;
    }
    if (choice?.finish_reason) reply.end ??= choice.finish_reason;
    if (chunk.usage) this.#count(chunk.usage);
    if (chunk.r1mac) this.#hear(chunk.r1mac);
    this.on.changed();
    if (performance.now() - this.keptMs > KEEP_EVERY_MS) {
      this.keptMs = performance.now();
      this.on.keep();
    }
  }

  #hear({ notice, pace, prefill, finish }) {
    const { reply } = this;
    if (notice) {
      reply.notices.push(notice.text);
      this.on.progress(notice.text);
    }
    if (prefill && prefill.done < prefill.total) this.on.progress(`Reading ${prefill.done} of ${prefill.total} tokens`);
    if (pace) {
      reply.thinkTokens = pace.think_tokens || null;
      reply.tokens = pace.tokens;
      reply.tokensPerSecond = pace.tokens_per_s;
      if (reply.answer === "" && this.begunMs !== null) reply.thinkSeconds = (performance.now() - this.begunMs) / 1000;
      this.on.pace?.(pace);
    }
    if (finish) {
      // OpenAI's words have no room for memory, context, loop and cancelled.
      reply.end = finish.reason;
      reply.tokensPerSecond = finish.tokens_per_s;
    }
  }

  #count(usage) {
    this.reply.tokens = usage.completion_tokens;
    this.reply.thinkTokens = usage.completion_tokens_details?.reasoning_tokens || null;
  }

  #measureThought() {
    if (this.begunMs === null || this.thoughtEnded) return;
    this.thoughtEnded = true;
    this.reply.thinkSeconds = (performance.now() - this.begunMs) / 1000;
  }

  #failed(error) {
    const { reply } = this;
    if (this.left) {
      reply.end = "lost";
      return;
    }
    if (error.name === "AbortError") {
      reply.end = "cancelled";
      return;
    }
    reply.end = error.status === 0 && (reply.thought || reply.answer) ? "lost" : "failed";
    reply.problem = problemText(error);
    reply.needsKey = error.status === 401 || undefined;
  }
}

function problemText(error) {
  if (!(error instanceof ServerError)) return `The page could not read the reply: ${error.message}`;
  const again = error.retryAfterSeconds ? ` Try again in ${error.retryAfterSeconds} s.` : "";
  const text = `${error.message.charAt(0).toUpperCase()}${error.message.slice(1)}`;
  return `${text}${/[.!?)]$/.test(text) ? "" : "."}${again}`;
}
