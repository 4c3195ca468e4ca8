// Memory and speed, as the server tells them: asked for while something is written, and now and then.

import { state } from "./api.js";
import { byId } from "./elements.js";
import { duration, memory, rate } from "./numbers.js";

const WAITING_MS = 500;
const BUSY_MS = 2000;
const IDLE_MS = 10000;

export class Gauge {
  /** `onState(now)` is told what the server says of itself, each time. */
  constructor(say, onState) {
    this.say = say;
    this.onState = onState;
    this.busy = false;
    this.waiting = false;
    document.addEventListener("visibilitychange", () => !document.hidden && this.refresh());
  }

  /** Looks now, and again while the page is open. */
  async refresh() {
    clearTimeout(this.timer);
    try {
      const now = await state(AbortSignal.timeout(5000));
      this.#show(now);
      this.onState(now);
      if (this.busy && now.phase === "loading") this.say("Loading the model …");
    } catch {
      byId("gauge").hidden = true;
    }
    clearTimeout(this.timer);
    const pauseMs = this.waiting ? WAITING_MS : this.busy ? BUSY_MS : IDLE_MS;
    if (!document.hidden) this.timer = setTimeout(() => this.refresh(), pauseMs);
  }

  setBusy(busy) {
    this.busy = busy;
    if (!busy) byId("pace").textContent = "";
    this.refresh();
  }

  /** Whether something was asked for that the server's state will show. */
  setWaiting(waiting) {
    if (waiting && !this.waiting) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.refresh(), WAITING_MS);
    }
    this.waiting = waiting;
  }

  /** A reply's own pace, fresher than the server's. */
  pace({ tokens_per_s: perSecond, left_seconds: left }) {
    if (!perSecond) return;
    byId("pace").textContent = left ? `${rate(perSecond)} · at most ${duration(left)} left` : rate(perSecond);
  }

  #show(now) {
    const planned = (now.weight_bytes ?? 0) + (now.cache_bytes ?? 0) + (now.scratch_bytes ?? 0);
    const limit = now.limit_bytes ?? now.budget_bytes;
    byId("gauge").hidden = !limit || (!planned && !now.used_bytes);
    if (limit) this.#showBar(now.used_bytes ?? 0, planned, limit);
  }

  #showBar(used, planned, limit) {
    const bar = byId("gauge-bar");
    const share = (bytes) => `${Math.min(100, (100 * bytes) / limit)}%`;
    bar.querySelector(".used").style.inlineSize = share(used);
    bar.querySelector(".plan").style.insetInlineStart = share(planned);
    bar.classList.toggle("full", used > 0.97 * limit);
    const text = `${memory(used)} of ${memory(limit)}`;
    bar.setAttribute("aria-valuenow", String(used));
    bar.setAttribute("aria-valuemax", String(limit));
    bar.setAttribute("aria-valuetext", `${memory(used)} used, ${memory(planned)} planned, limit ${memory(limit)}`);
    byId("gauge").title = `Memory: ${memory(used)} used, ${memory(planned)} planned (the mark), limit ${memory(limit)}`;
    byId("gauge-text").textContent = text;
  }
}
