/**
 * Making elements. What comes from a dump only ever enters the page as a text node or an attribute value, never as
 * markup: a dump may have been written by anybody.
 */

/** @typedef {Node | string | number | null | undefined | false} Child */
/** @typedef {Record<string, any>} Attributes */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element.
 * @param {string} tag
 * @param {Attributes} [attributes] `on` holds listeners by event, `style` properties; false and null leave one out,
 *   true is an attribute without a value.
 * @param {...(Child | Child[])} children null and false are left out
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * The same for SVG.
 * @param {string} tag
 * @param {Attributes} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * @param {Element} element
 * @param {Attributes} attributes
 * @param {(Child | Child[])[]} children
 */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "style") for (const [key, word] of Object.entries(value)) setStyle(element, key, String(word));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter(isShown).map(asNode));
  return element;
}

/**
 * @param {any} element
 * @param {string} key
 * @param {string} value
 */
function setStyle(element, key, value) {
  element.style.setProperty(key, value);
}

/** @param {Child} child */
function isShown(child) {
  return child !== null && child !== undefined && child !== false;
}

/**
 * @param {Child} child
 * @returns {Node}
 */
function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

/**
 * Replace what is in an element. Where the focus was within, it goes to what now stands in that place, so that
 * somebody at the keyboard does not lose the way whenever the page draws anew.
 * @param {Element} element
 * @param {...(Child | Child[])} children
 */
export function put(element, ...children) {
  const place = focusWithin(element);
  element.replaceChildren(...children.flat().filter(isShown).map(asNode));
  if (place) /** @type {HTMLElement | null} */ (element.querySelector(place))?.focus();
}

/**
 * @param {Element} element
 * @returns {string} a selector of what has the focus, by the names that `button`, `choice` and `segments` give; "" where
 *   nothing in the element has it
 */
function focusWithin(element) {
  const { activeElement } = document;
  if (!(activeElement instanceof HTMLElement) || !element.contains(activeElement)) return "";
  const selector = (/** @type {string} */ name, /** @type {string | undefined} */ value) =>
    value === undefined ? "" : `[data-${name}="${CSS.escape(value)}"]`;
  const { name, value, row } = activeElement.dataset;
  const group = activeElement.parentElement?.closest("[data-name]");
  const within =
    group instanceof HTMLElement && element.contains(group) ? `${selector("name", group.dataset.name)} ` : "";
  const own = selector("name", name) + selector("value", value) + selector("row", row);
  return own && (name === undefined ? within : "") + own;
}

/**
 * A button with an icon, a text or both. Without a text, `label` is what a screen reader and the tooltip say.
 * @param {{label: string, icon?: Node, text?: string, click: (event: MouseEvent) => void, pressed?: boolean,
 *   name?: string}} of
 * @returns {HTMLButtonElement}
 */
export function button({ label, icon, text, click, pressed, name }) {
  const attributes = {
    type: "button",
    class: text ? "button" : "button icon-only",
    title: label,
    "aria-label": text ? null : label,
    "aria-pressed": pressed === undefined ? null : String(pressed),
    "data-name": name,
    on: { click },
  };
  return el("button", attributes, icon, text ? el("span", {}, text) : null);
}

/**
 * A drop-down list.
 * @param {{label: string, options: {value: string, text: string}[], value: string, name: string,
 *   change: (value: string) => void, hidden?: boolean}} of `hidden` keeps the label for screen readers only
 * @returns {HTMLLabelElement}
 */
export function choice({ label, options, value, name, change, hidden }) {
  const list = el(
    "select",
    { "data-name": name, on: { change: (/** @type {any} */ event) => change(event.target.value) } },
    options.map((one) => el("option", { value: one.value, selected: one.value === value }, one.text)),
  );
  list.value = value;
  return el("label", { class: "choice" }, el("span", { class: hidden ? "unseen" : "choice-label" }, label), list);
}

/**
 * Buttons of which one is on.
 * @param {{label: string, options: {value: string, text: string, title?: string}[], value: string, name: string,
 *   change: (value: string) => void}} of
 * @returns {HTMLElement}
 */
export function segments({ label, options, value, name, change }) {
  const parts = options.map((one) =>
    el(
      "button",
      {
        type: "button",
        class: "segment",
        title: one.title,
        "aria-pressed": String(one.value === value),
        "data-value": one.value,
        on: { click: () => change(one.value) },
      },
      one.text,
    ),
  );
  return el("div", { class: "segments", role: "group", "aria-label": label, "data-name": name }, parts);
}
