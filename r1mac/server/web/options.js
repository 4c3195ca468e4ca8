// What a person may choose for the replies: kept in the browser, the same for all conversations.

import { apiKey, setApiKey } from "./api.js";
import { byId } from "./elements.js";

const KEY = "r1mac.options";
const DEFAULTS = { effort: "high", thinkTokens: "4096", temperature: "", maxTokens: "", system: "", model: "" };
const FIELDS = {
  effort: "option-effort", thinkTokens: "option-think-tokens", temperature: "option-temperature",
  maxTokens: "option-max-tokens", system: "option-system",
};

export class Options {
  constructor() {
    this.values = { ...DEFAULTS, ...read() };
    const dialog = byId("options");
    for (const [name, id] of Object.entries(FIELDS)) byId(id).value = this.values[name];
    byId("option-effort").onchange = () => this.#showRow();
    byId("open-options").onclick = () => this.open();
    dialog.onclose = () => this.#keep();
    // A click beside the dialog is a click on its backdrop.
    dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
    this.#showRow();
  }

  open() {
    byId("option-key").value = apiKey();
    byId("options").showModal();
  }

  set(name, value) {
    this.values[name] = value;
    write(this.values);
  }

  /** The part of a request that the options decide. */
  asRequest() {
    const { effort, thinkTokens, temperature, maxTokens } = this.values;
    const request = {};
    if (effort === "custom") request.reasoning = { max_tokens: Number(thinkTokens) };
    else request.reasoning_effort = effort;
    if (temperature !== "") request.temperature = Number(temperature);
    if (maxTokens !== "") request.max_completion_tokens = Number(maxTokens);
    return request;
  }

  #showRow() {
    byId("option-think-tokens-row").hidden = byId("option-effort").value !== "custom";
  }

  #keep() {
    for (const [name, id] of Object.entries(FIELDS)) {
      const field = byId(id);
      if (field.validity.valid) this.values[name] = field.value;
      else field.value = this.values[name];
    }
    if (this.values.effort === "custom" && this.values.thinkTokens === "") this.values.thinkTokens = DEFAULTS.thinkTokens;
    write(this.values);
    if (byId("option-key").value !== apiKey()) {
      setApiKey(byId("option-key").value);
      this.onKey?.();
    }
  }
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    return {};
  }
}

function write(values) {
  try {
    localStorage.setItem(KEY, JSON.stringify(values));
  } catch {
    // They hold until the page is closed.
  }
}
