/**
 * What TensorBoard imports into an empty iframe. The list of runs takes the server as long as the page takes to come and
 * to start, so both are asked for at once, and the style sheet with them.
 */

const runs = fetch("./runs", { headers: { Accept: "*/*" } });
// Whoever awaits it learns of a failure; until then it is none that nobody has handled.
runs.catch(() => undefined);

const sheet = document.createElement("link");
const styled = new Promise((resolve) => ["load", "error"].forEach((event) => sheet.addEventListener(event, resolve)));
Object.assign(sheet, { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href });
document.head.append(sheet);

const page = import("./page.js");

/** Called by TensorBoard. */
export async function render() {
  const { render: start } = await page;
  await styled;
  return start(runs);
}
