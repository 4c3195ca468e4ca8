// Making elements. Text is text: nothing here understands HTML.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; strings become text. */
export function element(tag, properties = {}, ...children) {
  const { dataset, aria, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset ?? {});
  for (const [name, value] of Object.entries(aria ?? {})) made.setAttribute(`aria-${name}`, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function button(text, onclick, properties = {}) {
  return element("button", { type: "button", textContent: text, onclick, ...properties });
}

/** Copies, and says on the button that it did. */
export function copyButton(text, label = "Copy") {
  const made = button(label, async () => {
    made.textContent = (await copied(text())) ? "Copied" : "Not copied";
    setTimeout(() => { made.textContent = label; }, 1500);
  });
  return made;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard outside a secure context: http://other-mac:11435 is none.
    const area = element("textarea", { value: text, className: "unseen" });
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}

/** Asks in a dialog; resolves to the text, "" where none was asked for, or null for «Cancel». */
export function ask({ title, text = "", value = null, yes = "OK", secret = false }) {
  const dialog = byId("ask");
  const input = byId("ask-input");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = yes;
  input.hidden = value === null;
  input.type = secret ? "password" : "text";
  input.value = value ?? "";
  input.setAttribute("aria-label", title);
  return new Promise((resolve) => {
    byId("ask-no").onclick = () => dialog.close("no");
    byId("ask-yes").value = "yes";
    dialog.returnValue = "no";
    dialog.onclose = () => resolve(dialog.returnValue === "yes" ? input.value : null);
    dialog.showModal();
    if (value !== null) input.select();
  });
}
