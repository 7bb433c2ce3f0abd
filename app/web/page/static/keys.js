/** The field for an API key, shown where the service asks for one. */

import { announce, byId } from "./dom.js";
import { inPlainWords, Problem } from "./problems.js";

const PRINTABLE = /^[\x21-\x7e]+$/;

/**
 * Ask for a key, and hold it against the service.
 * @param {Service} service
 * @param {function(): Promise<void>} onKey after a key that the service takes
 * @returns {function(): void} what shows the field
 */
export function connectKeys(service, onKey) {
  const form = byId("key");
  const field = byId("key-value");
  const problem = byId("key-problem");

  const ask = () => {
    problem.textContent = service.key ? "The service does not take this key. Check it, and enter it again." : "";
    form.hidden = false;
    byId("key-change").hidden = true;
    field.focus();
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (!PRINTABLE.test(key)) {
      problem.textContent = "A key has letters, digits and signs of the keyboard, and no spaces.";
      return;
    }
    service.key = key;
    try {
      await service.model();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.code === "unauthorized") ask();
      else problem.textContent = inPlainWords(error);
      return;
    }
    field.value = "";
    form.hidden = true;
    byId("key-change").hidden = false;
    byId("choose").focus();
    announce("The key is accepted.");
    await onKey();
  });
  byId("key-change").hidden = !service.key;
  byId("key-change").addEventListener("click", () => {
    service.key = "";
    ask();
  });
  return ask;
}
