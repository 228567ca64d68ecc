/**
 * The page around this one: TensorBoard puts the tab into an iframe of the same origin. What it offers is a message
 * channel that says when data were loaded again; its address and its theme are read from its window.
 */

/** TensorBoard keeps its own state in the hash as `#tab&key=value`, and leaves keys that it does not know. */
const KEY = "view";
const TAB = "influence";

/** @returns {Window} TensorBoard's window, or this one where the page is opened by itself */
function top() {
  try {
    void window.parent.location.hash;
    return window.parent;
  } catch {
    return window;
  }
}

/** @returns {string[]} parts of TensorBoard's hash */
function parts() {
  return top().location.hash.slice(1).split("&").filter(Boolean);
}

/** @returns {string} the link's text that `writeLink` left in the address, "" where there is none */
export function readLink() {
  const found = parts().find((part) => part.startsWith(`${KEY}=`));
  try {
    return found ? decodeURIComponent(found.slice(KEY.length + 1)) : "";
  } catch {
    return "";
  }
}

/**
 * @param {string} link
 * @returns {string} the address that reopens the view
 */
export function addressOf(link) {
  const address = new URL(top().location.href);
  const kept = parts().filter((part) => part.includes("=") && !part.startsWith(`${KEY}=`));
  address.hash = [TAB, `${KEY}=${encodeURIComponent(link)}`, ...kept].join("&");
  return address.toString();
}

/**
 * Put the view into the address without a new entry of the history. Another tab's address is left alone.
 * @param {string} link
 */
export function writeLink(link) {
  const shown = parts()[0];
  if (shown !== undefined && shown !== TAB) return;
  const host = top();
  host.history.replaceState(host.history.state, "", addressOf(link));
}

/** @param {(link: string) => void} listener is told when somebody changes the address by hand */
export function listenLink(listener) {
  top().addEventListener("hashchange", () => {
    if (parts()[0] === TAB) listener(readLink());
  });
}

/** @param {() => void} listener is called when TensorBoard has loaded its data again */
export function listenReload(listener) {
  if (window.parent === window) return;
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.isReply) return;
    channel.port1.postMessage(
      JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }),
    );
    if (message.type === "experimental.DataReloaded") listener();
  };
  window.parent.postMessage("experimental.bootstrap", "*", [channel.port2]);
}

/** @returns {boolean} whether this tab is the one that is shown */
export function isShown() {
  return document.visibilityState === "visible" && window.innerHeight > 0;
}

/**
 * Have the keys come to this page as soon as it is shown, and not only after a click: nothing on TensorBoard's own page
 * takes them, unless somebody types there.
 */
export function takeKeys() {
  const { frameElement } = window;
  const host = /** @type {any} */ (top());
  if (host === window || !frameElement) return;
  const take = () => {
    const active = host.document.activeElement;
    const typing = active?.matches("input, textarea, select, [contenteditable]") ?? false;
    if (!typing && active !== frameElement) window.focus();
  };
  let was = false;
  // Of the host's window: within a frame that is hidden, as while another tab is shown, nothing is observed.
  new host.IntersectionObserver((/** @type {IntersectionObserverEntry[]} */ entries) => {
    const is = entries.at(-1)?.isIntersecting ?? false;
    if (is && !was) take();
    was = is;
  }).observe(frameElement);
}

/** @param {(dark: boolean) => void} listener is told at once, and whenever the theme changes */
export function listenTheme(listener) {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const body = window.parent === window ? null : top().document.body;
  // TensorBoard has a switch of its own, which follows the system unless somebody has turned it.
  const tell = () => listener(body ? body.classList.contains("dark-mode") : system.matches);
  system.addEventListener("change", tell);
  if (body) new MutationObserver(tell).observe(body, { attributes: true, attributeFilter: ["class"] });
  tell();
}
