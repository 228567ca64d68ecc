/** Keys that work everywhere on the page, and the page that lists them. */

import { el } from "./dom.js";

/** @typedef {{keys: string[], text: string, act: (key: string) => void}} Shortcut */

/** What the keys of + and − give without Shift, or with it: not worth a line of the help. */
const SAME = ["=", "_"];

/**
 * @param {Shortcut[]} shortcuts
 * @param {() => void} escape
 */
export function listenKeys(shortcuts, escape) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey !== needsShift(event.key, event.shiftKey))
      return;
    if (event.key === "Escape") {
      escape();
      return;
    }
    if (isTyping(event.target, event.key)) return;
    const found = shortcuts.find(({ keys }) => keys.includes(event.key));
    if (!found) return;
    event.preventDefault();
    found.act(event.key);
  });
}

/**
 * Signs such as + and ? take Shift on some keyboards and not on others; letters and arrows never do here.
 * @param {string} key
 * @param {boolean} pressed
 */
function needsShift(key, pressed) {
  return /^[a-zA-Z]$|^Arrow|^ $/.test(key) ? false : pressed;
}

/**
 * @param {EventTarget | null} target
 * @param {string} key
 */
function isTyping(target, key) {
  if (!(target instanceof Element)) return false;
  if (target.closest("dialog")) return true;
  if (target.matches('input[type="text"], select, textarea')) return true;
  // A focused button, checkbox or disclosure answers to space itself.
  if (key === " " || key === "Enter") return target.matches('button, summary, a, [role=button], input[type="checkbox"]');
  return key.startsWith("Arrow") && target.matches('input[type="range"]');
}

/** The list of keys, in a dialog. */
export class Help {
  /** @param {Shortcut[]} shortcuts */
  constructor(shortcuts) {
    const rows = [
      ...shortcuts.map(({ keys, text }) => ({ keys: keys.filter((key) => !SAME.includes(key)).map(shown), text })),
      { keys: ["Esc"], text: "back to the previous view; close" },
      { keys: ["drag"], text: "on the heatmap: zoom to a block; the wheel zooms too" },
      { keys: ["Shift + drag"], text: "on the heatmap: the mean of a block over training" },
      { keys: ["Shift + arrows"], text: "on the focused heatmap: move the cursor; Enter chooses" },
    ];
    this.dialog = /** @type {HTMLDialogElement} */ (
      el(
        "dialog",
        { class: "help", "aria-labelledby": "help-title" },
        el("h2", { id: "help-title", class: "panel-title" }, "Reading and navigation"),
        el(
          "p",
          {},
          "Each cell shows the effect of more weight on one train example (row) on the loss of one query (column), at one step of training. ",
          el("span", { class: "key helps" }),
          "Blue, above 0: it helps, the query's loss falls. ",
          el("span", { class: "key hurts" }),
          "Orange, below 0: it hurts. Tables that are saved hold the influence of the dump, which is minus the effect.",
        ),
        el(
          "p",
          {},
          "Every value has a Monte Carlo standard error: value ± 1.96 standard errors contains the long-run value in 95 % of cases. The errors do not include bias; the Trust tab shows it.",
        ),
        el(
          "table",
          { class: "shortcuts" },
          el(
            "tbody",
            {},
            rows.map(({ keys, text }) =>
              el(
                "tr",
                {},
                el(
                  "th",
                  { scope: "row" },
                  keys.map((key) => el("kbd", {}, key)),
                ),
                el("td", {}, text),
              ),
            ),
          ),
        ),
        el("form", { method: "dialog" }, el("button", { class: "button", type: "submit" }, el("span", {}, "Close"))),
      )
    );
  }

  open() {
    if (!this.dialog.open) this.dialog.showModal();
  }
}

/** @param {string} key */
function shown(key) {
  const names = { " ": "Space", ArrowLeft: "←", ArrowRight: "→", "-": "−" };
  return /** @type {Record<string, string>} */ (names)[key] ?? key;
}
