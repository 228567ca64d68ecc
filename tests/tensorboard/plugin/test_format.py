"""How the page writes numbers: those of one grid or axis alike, and none rounded to what it is not."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

pytestmark = pytest.mark.exact

FORMAT = Path(__file__).parents[3] / "bif_lightning/tensorboard/plugin/static/format.js"
MINUS = "\N{MINUS SIGN}"
GRIDS = [
    ([0.2503, 0.0067, -0.0031], [0.0112, 0.0012, 0.0014], ["+0.2503 ± 0.0112", "+0.0067 ± 0.0012", "-0.0031 ± 0.0014"]),
    ([3.4e-4, -0.0, None], [0.001, 0.002, None], ["(+0.3 ± 1.0)·10⁻³", "(0.0 ± 2.0)·10⁻³", "undefined"]),
    ([0.31, -0.2], [0.04, 0.05], ["+0.310 ± 0.040", "-0.200 ± 0.050"]),
    ([3e7, 1e6], [2e6, 1e5], ["(+3.00 ± 0.20)·10⁷", "(+0.10 ± 0.01)·10⁷"]),
    ([1.5, 0.0], [None, None], ["+1.50 (error unknown)", "0.00 (error unknown)"]),
    ([0.0, 0.0], [0.0, 0.0], ["0.00 (error unknown)"] * 2),
]
AXES = [
    ([336.0, 336.5, 337.0, 337.5], ["336.0", "336.5", "337.0", "337.5"]),
    ([0.0, 0.25, 0.5], ["0", "0.25", "0.50"]),
    ([-20.0, 0.0, 20.0], ["-20", "0", "20"]),
    ([10_000.0, 12_000.0], ["10,000", "12,000"]),
    ([0.0, 2e-5, 4e-5], ["0", "2·10⁻⁵", "4·10⁻⁵"]),
    ([2e6, 4e6], ["2·10⁶", "4·10⁶"]),
    ([1.0], ["1"]),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, list[list[str]]]:
    """What the page makes of all of them, in Node."""
    folder = tmp_path_factory.mktemp("format")
    shutil.copy(FORMAT, folder / "format.mjs")
    asked = json.dumps({"grids": [grid[:2] for grid in GRIDS], "axes": [axis[0] for axis in AXES]})
    (folder / "ask.mjs").write_text(
        f"""import {{ gridOf, ticks }} from "./format.mjs";
const asked = {asked};
const grids = asked.grids.map(([values, errors]) => {{
  const grid = gridOf(values, errors);
  return values.map((value, at) => grid.both(value, errors[at]));
}});
console.log(JSON.stringify({{ grids, axes: asked.axes.map(ticks) }}));"""
    )
    node = shutil.which("node") or compute_driver_executable()[0]
    done = subprocess.run([node, folder / "ask.mjs"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("place", range(len(GRIDS)))
def test_a_grid_has_one_exponent_and_one_number_of_decimals(written, place):
    assert [one.replace(MINUS, "-") for one in written["grids"][place]] == GRIDS[place][2]


@pytest.mark.parametrize("place", range(len(AXES)))
def test_the_numbers_of_an_axis_differ(written, place):
    assert [one.replace(MINUS, "-") for one in written["axes"][place]] == AXES[place][1]
