"""The modules of the page joined into one: every form of import and export that they use, and no other."""

import shutil
import subprocess
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

from bif_lightning.tensorboard.plugin.page import joined

STATIC = Path(__file__).parents[3] / "bif_lightning/tensorboard/plugin/static"


def write(folder: Path, **modules: str) -> Path:
    for name, text in modules.items():
        (folder / f"{name}.js").write_text(text)
    return folder


def run(script: str, folder: Path) -> str:
    """What Node prints; Playwright brings one along."""
    node = shutil.which("node") or compute_driver_executable()[0]
    path = folder / "joined.mjs"
    path.write_text(script)
    return subprocess.run([node, path], capture_output=True, text=True, check=True).stdout.strip()


MODULES = {
    "page": """import A from "./small.js";
import { add, Box } from "./base.js";
import {
  twice,
} from "./more.js";
const name = "page";
export async function render() {
  return [name, A, add(1, 2), new Box().size, twice(4)];
}
""",
    "base": """const name = "base";
export function add(a, b) {
  return a + b;
}
export class Box {
  size = 7;
}
console.log(name, import.meta.url.endsWith("joined.mjs"));
""",
    "more": """import { add } from "./base.js";
/** export function old() {} */
export const twice = (a) => add(a, a);
""",
    "small": "const a=1;function b(){return a}export{b as default};",
}


def test_one_module_does_what_the_many_do(tmp_path):
    script = joined(write(tmp_path, **MODULES), "page")
    assert run(f"{script}\nconst [n, a, ...rest] = await render(); console.log(n, a(), ...rest);", tmp_path) == (
        "base true\npage 1 3 7 8"
    )


@pytest.mark.parametrize(
    "text",
    [
        'import * as all from "./base.js";\n', 'import { add as sum } from "./base.js";\n', 'import "./base.js";\n',
        'import { add } from "../base.js";\n', "export default 3;\n", "export let a = 1;\n", "export { a };\n",
        'export * from "./base.js";\n', "const a = 1;export{a};", 'const late = import("./base.js");\n  import("x");\n',
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"page\.js: .*cannot be joined"):
        joined(write(tmp_path, **MODULES | {"page": text}), "page")


def test_a_circle_is_named(tmp_path):
    circle = {
        "a": 'import { b } from "./b.js";\n',
        "b": 'import { c } from "./c.js";\n',
        "c": 'import { b } from "./b.js";\n',
    }
    with pytest.raises(ValueError, match="in a circle: a -> b -> c -> b"):
        joined(write(tmp_path, **circle), "a")


def test_the_page_is_joined_whole():
    script = joined(STATIC, "page")
    for path in STATIC.glob("*.js"):
        assert (f"const ${path.stem} = " in script) == (path.stem != "index"), path.name
    assert script.rstrip().endswith("export const { render } = $page;")


def test_no_line_of_code_is_lost(tmp_path):
    script = joined(STATIC, "page").splitlines()
    for path in STATIC.glob("*.js"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith(("import ", "export"))]
        if path.stem not in ("index", "uplot"):
            assert set(lines) <= set(script), path.name
