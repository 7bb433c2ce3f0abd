/** Small helpers for the document. Text is only ever set as text. */

/** Give the element of an id. */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element.
 * @param {string} tag
 * @param {Object} properties properties of the element; those with a dash are set as attributes
 * @param {...(Node|string)} children
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Tell people who listen to the page. The same words twice are said twice. */
export function announce(text) {
  const region = byId("announce");
  region.textContent = region.textContent === text ? `${text}\u00a0` : text;
}

/** Write a share of 1 in percent, with a decimal below ten and above ninety-nine. */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.05) return "under 0.1%";
  return `${value < 9.95 || value > 99 ? Number(value.toFixed(1)) : Math.round(value)}%`;
}

/** Write bytes as people count them. */
export function bytes(count) {
  if (count < 1000) return `${count} bytes`;
  if (count < 1e6) return `${Math.round(count / 1e3)} KB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}
