"""The whole page in a real browser: TensorBoard around it, links, files, keys, themes, screen readers, new dumps."""

import csv
import io
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import tab_runs
from tab_server import serving

pytestmark = pytest.mark.browser


def test_tensorboard_finds_the_tab_and_a_link_reopens_the_view(opened, tensorboard):
    tab = opened(tensorboard, whole=True)
    tab.shows(run="digits/bif", step="320")
    tab.named("slider").fill("2")
    tab.named("matrix").select_option("influence")
    tab.named("order-train").select_option("dataset")
    tab.shows(step="40", matrix="influence")
    tab.page.wait_for_timeout(400)
    tab.drag((10.5, 4.5), (29.5, 11.5))
    tab.shows(window="10,30,4,12")
    tab.click(12, 5)
    tab.until(lambda: "train-12" in " ".join(tab.curves()))
    address = tab.page.url
    assert "#influence&view=" in address
    again = opened(address.split("#")[0].rstrip("/"), address.split("#influence")[1], whole=True)
    again.shows(step="40", matrix="influence", window="10,30,4,12")
    again.until(lambda: tab.curves() == again.curves())


@pytest.mark.slow
def test_leaving_the_tab_and_coming_back_keeps_the_view(opened, tensorboard):
    tab = opened(tensorboard, whole=True)
    tab.shows(step="320")
    tab.named("slider").fill("1")
    tab.shows(step="20")
    tab.page.get_by_role("tab", name="Time Series").click()
    tab.page.wait_for_timeout(700)
    assert "#influence" not in tab.page.url
    tab.page.get_by_role("tab", name="Influence").click()
    tab.shows(step="20")


@pytest.mark.slow
def test_an_address_typed_by_hand_is_followed(opened, tensorboard):
    tab = opened(tensorboard)
    tab.shows(step="320")
    tab.frame.evaluate("location.hash = '#influence&view=view%3Dmatrix%26run%3Ddigits%252Fbif%26step%3D80'")
    tab.shows(step="80")


@pytest.mark.slow
def test_the_link_button_copies_an_address_with_the_step(opened, tensorboard):
    tab = opened(tensorboard, permissions=["clipboard-read", "clipboard-write"])
    tab.shows(step="320")
    tab.named("link").click()
    tab.until(lambda: "copied" in tab.named("live").inner_text())
    copied = tab.frame.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(tensorboard)
    assert "step%3D320" in copied


def saved(tab, name: str) -> tuple[str, bytes]:
    with tab.page.expect_download() as waiting:
        tab.named(name).click()
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


def colours_in(png: bytes) -> int:
    """How many colours a picture has: an empty one has those of its words alone."""
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0))


@pytest.mark.slow
def test_views_are_saved_as_pictures_and_tables(tab):
    tab.named("order-train").select_option("dataset")
    tab.shows(window="0,120,0,40")
    tab.click(3, 3)
    tab.until(lambda: tab.curves())
    name, body = saved(tab, "png-heatmap")
    assert name == "digits_bif_step_320_correlation_heatmap.png"
    assert colours_in(body) > 100
    assert colours_in(saved(tab, "png-trajectory")[1]) > 10
    _, body = saved(tab, "csv-heatmap")
    rows = list(csv.DictReader(io.StringIO(body.decode())))
    assert len(rows) == tab_runs.TRAIN * tab_runs.QUERY
    tab.until(lambda: tab.named("live").inner_text() == "Saved digits_bif_step_320_correlation_heatmap.csv.")
    _, body = saved(tab, "csv-trajectory")
    assert [row["step"] for row in csv.DictReader(io.StringIO(body.decode()))] == [str(step) for step in tab_runs.STEPS]
    _, body = saved(tab, "csv-cards")
    assert b"train-" in body
    tab.segment("view", "trust")
    tab.frame.wait_for_selector("[data-name=measures] canvas")
    assert colours_in(saved(tab, "png-trust")[1]) > 10
    assert b"rhat" in saved(tab, "csv-trust")[1]
    tab.segment("view", "compare")
    tab.frame.wait_for_selector("[data-name=maps][data-of]")
    assert colours_in(saved(tab, "png-comparison")[1]) > 100


@pytest.mark.slow
def test_a_large_table_is_saved_in_parts_and_one_that_fails_is_not_called_saved(opened, tensorboard):
    def fewer(route) -> None:
        """The page as it is, where a part has no more than 2,000 entries."""
        body = route.fetch().text()
        assert "const MOST_CELLS = 1 << 18;" in body
        route.fulfill(
            body=body.replace("const MOST_CELLS = 1 << 18;", "const MOST_CELLS = 2000;"), content_type="text/javascript"
        )

    tab = opened(tensorboard, errors=True, before=lambda page: page.route("**/static/page.js", fewer))
    tab.shows(step="320")
    asked: list[str] = []
    tab.page.on("request", lambda request: "/export?" in request.url and asked.append(request.url))
    name, body = saved(tab, "csv-heatmap")
    rows = list(csv.DictReader(io.StringIO(body.decode())))
    assert (name, len(asked)) == ("digits_bif_step_320_correlation_heatmap.csv", 3)
    assert {(row["train"], row["query"]) for row in rows} == {
        (str(train), str(query)) for train in range(tab_runs.TRAIN) for query in range(tab_runs.QUERY)
    }
    downloads: list[object] = []
    tab.page.on("download", lambda download: downloads.append(download))
    tab.page.route("**/export?*", lambda route: route.fulfill(status=503, json={"error": "All readers are busy."}))
    tab.named("csv-cards").click()
    tab.until(lambda: tab.named("live").inner_text() == "Nothing was saved: All readers are busy.")
    assert not downloads


@pytest.mark.slow
def test_keys_work_without_a_click_into_the_tab(opened, tensorboard):
    tab = opened(tensorboard, whole=True)
    tab.shows(step="320")
    tab.page.keyboard.press("ArrowLeft")
    tab.shows(step="160")


@pytest.fixture
def listed(tensorboard):
    """What the list of runs is put through before the page gets it."""
    changes: list = []

    def answer(route) -> None:
        found = route.fetch().json()
        for change in changes:
            found = change(found)
        route.fulfill(json=found)

    return changes, lambda page: page.route("**/influence/runs", answer)


def without(name: str):
    return lambda found: {**found, "runs": [run for run in found["runs"] if run["run"] != name]}


def written_last(name: str):
    return lambda found: {
        **found, "runs": [{**run, "written": run["written"] + 1e6 * (run["run"] == name)} for run in found["runs"]]
    }  # fmt: skip


@pytest.mark.slow
def test_the_newest_run_opens_and_one_that_vanishes_is_not_replaced(opened, tensorboard, listed):
    changes, before = listed
    changes.append(written_last("tokens/bif"))
    tab = opened(tensorboard, before=before)
    tab.shows(run="tokens/bif", step="7")
    changes.append(without("tokens/bif"))
    tab.until(lambda: "This run is gone" in tab.frame.inner_text("main"), 20)
    assert "tokens%252Fbif" in tab.frame.evaluate("location.hash"), "the link is of the run that was chosen"
    assert tab.named("run").input_value() == "tokens/bif"
    changes.pop()
    tab.shows(run="tokens/bif", step="7")
    tab.named("run").select_option("digits/bif")
    tab.shows(run="digits/bif", step="320")


@pytest.mark.slow
def test_of_many_runs_one_is_found_by_typing(opened, tensorboard, listed):
    changes, before = listed
    changes.append(
        lambda found: {
            **found,
            "runs": [*found["runs"], *({**found["runs"][0], "run": f"more/{n}", "written": 0} for n in range(12))],
        }
    )
    tab = opened(tensorboard, before=before)
    tab.shows(run="digits/bif", step="320")
    tab.named("find-run").click()
    assert tab.frame.locator(".bar [role=option]").count() == 12
    tab.named("find-run").fill("words")
    tab.named("find-run").press("Enter")
    tab.shows(run="words/bif", step="5")


@pytest.mark.slow
def test_keys_move_play_zoom_and_help(tab):
    keys = tab.page.keyboard
    keys.press("ArrowLeft")
    tab.shows(step="160")
    keys.press("ArrowRight")
    tab.shows(step="320")
    keys.press("+")
    tab.shows(window="24,96,8,32")
    keys.press("-")
    tab.shows(window="0,120,0,40")
    keys.press("Escape")
    tab.shows(window="24,96,8,32")
    keys.press("0")
    tab.shows(window="0,120,0,40")
    keys.press("c")
    tab.shows(window="0,10,0,10")
    keys.press("c")
    tab.shows(window="0,120,0,40")
    keys.press("?")
    assert tab.frame.locator("dialog[open]").count() == 1
    keys.press("ArrowLeft")
    keys.press("Escape")
    tab.until(lambda: tab.frame.locator("dialog[open]").count() == 0)
    tab.shows(step="320")
    keys.press("3")
    tab.frame.wait_for_selector("[data-name=measures] canvas")
    keys.press("1")
    tab.frame.wait_for_selector("[data-name=ranking] table")
    keys.press("2")
    keys.press("Space")
    tab.until(lambda: tab.named("play").get_attribute("aria-pressed") == "true")
    keys.press("Space")
    tab.until(lambda: tab.named("play").get_attribute("aria-pressed") == "false")


@pytest.mark.slow
def test_the_heatmap_is_read_aloud_and_as_a_table(tab):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.until(lambda: "train-5\n" in tab.point(*tab_runs.FLIPS))
    tab.canvas.focus()
    tab.page.keyboard.press("Shift+ArrowDown")
    tab.until(lambda: "train train-6, query query-1003: " in tab.named("live").inner_text())
    tab.page.keyboard.press("Enter")
    tab.until(lambda: tab.curves() == ["train-6 → query-1003"])
    tab.page.keyboard.press("t")
    table = tab.frame.locator("table.numbers")
    table.wait_for()
    assert table.locator("thead th").count() == 9
    assert "means over" in table.locator("caption").inner_text()
    tab.drag((10.2, 4.2), (13.8, 6.8))
    tab.shows(window="10,14,4,7")
    tab.until(lambda: table.locator("tbody th").all_inner_texts() == [f"train-{row}" for row in range(10, 14)])
    assert "± 0.040" in table.locator("td").first.inner_text()


@pytest.mark.slow
def test_the_focus_stays_where_it_is_while_the_page_draws_anew(tab):
    tab.segment("over", "correlation")
    for name, press in (("order-train", "End"), ("since", "End"), ("zoom-in", "Enter")):
        tab.named(name).focus()
        tab.page.keyboard.press(press)
        tab.page.wait_for_timeout(300)
        assert tab.frame.evaluate("document.activeElement.dataset.name") == name
    tab.frame.locator('[data-name=side] [data-value="train"]').focus()
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_timeout(300)
    assert tab.frame.evaluate("document.activeElement.dataset.value") == "train"


@pytest.mark.slow
def test_every_control_has_a_name_and_focus_is_seen(tab):
    names = tab.frame.evaluate("""() => [...document.querySelectorAll('button, select, input, canvas[tabindex]')]
        .filter(one => one.offsetParent && !(one.getAttribute('aria-label') || one.innerText.trim()
            || one.labels?.[0]?.innerText.trim() || one.labels?.[0]?.textContent.trim()))
        .map(one => one.outerHTML.slice(0, 80))""")
    assert names == []
    tab.page.keyboard.press("Tab")
    outline = tab.frame.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    assert tab.frame.evaluate("document.documentElement.lang") == "en"


@pytest.mark.slow
def test_the_dark_theme_of_the_system_and_of_tensorboard(opened, tensorboard):
    system = opened(tensorboard, color_scheme="dark")
    system.shows(step="320")
    assert system.frame.evaluate("document.documentElement.dataset.theme") == "dark"
    assert sum(system.colour(*tab_runs.NOISE)) < 3 * 128
    host = opened(tensorboard, whole=True)
    host.shows(step="320")
    host.until(lambda: host.frame.evaluate("document.documentElement.dataset.theme") == "light")
    host.page.evaluate("document.body.classList.add('dark-mode')")
    host.until(lambda: host.frame.evaluate("document.documentElement.dataset.theme") == "dark")


@pytest.mark.slow
def test_a_narrow_window_has_one_column_and_nothing_to_scroll_sideways(opened, tensorboard):
    tab = opened(tensorboard, viewport={"width": 480, "height": 800})
    tab.shows(step="320")
    left, right = (tab.frame.locator(one).first.bounding_box() for one in (".matrix-panel", ".side"))
    assert left["x"] == right["x"]
    assert right["y"] > left["y"] + left["height"]
    assert tab.frame.evaluate("document.documentElement.scrollWidth") <= 480


@pytest.mark.slow
def test_motion_is_reduced_where_asked(opened, tensorboard):
    tab = opened(tensorboard, reduced_motion="reduce")
    tab.shows(step="320")
    assert tab.frame.evaluate("getComputedStyle(document.querySelector('.button')).transitionDuration") == "0s"


@pytest.mark.slow
def test_a_broken_dump_is_named_and_the_others_are_shown(tab):
    tab.named("run").select_option("other/bif")
    tab.shows(run="other/bif", step="320")
    tab.until(lambda: "step=000000999.h5 is skipped" in tab.frame.locator(".problems").inner_text())


@pytest.fixture
def growing(tmp_path):
    tab_runs.write_digits(tmp_path / "run/bif", tab_runs.STEPS[:2])
    with serving(tmp_path, "--path_prefix", "/deep/board") as address:
        yield tmp_path / "run/bif", address


@pytest.mark.slow
def test_new_dumps_arrive_while_the_page_is_open_under_a_path_prefix(opened, growing):
    folder, address = growing
    tab = opened(address, whole=True, errors=True)
    tab.shows(run="run/bif", step="20")
    tab_runs.write_step(folder, 40, 0.4)
    tab.frame.wait_for_selector('.matrix-panel[data-step="40"]', timeout=60_000)
    assert "A new snapshot: step 40" in tab.named("live").inner_text()
    tab.named("slider").fill("0")
    tab.shows(step="10")
    tab_runs.write_step(folder, 80, 0.6)
    tab.until(lambda: tab.named("slider").get_attribute("max") == "3", 20)
    assert tab.frame.locator(".matrix-panel").get_attribute("data-step") == "10", "who looks at one step stays there"


@pytest.mark.slow
def test_what_the_server_refuses_stands_where_the_picture_would_be(opened, tensorboard):
    def refuse(route) -> None:
        route.fulfill(status=422, json={"error": "step=000000040.h5 cannot be read: bad checksum. Write it anew."})

    tab = opened(tensorboard, errors=True, before=lambda page: page.route("**/view?*step=40&*", refuse))
    tab.shows(step="320")
    tab.named("slider").fill("2")
    notice = tab.frame.locator(".matrix-panel .notice")
    tab.until(lambda: "bad checksum" in notice.inner_text())
    tab.named("slider").fill("3")
    tab.shows(step="80")
    assert not notice.is_visible()


@pytest.mark.slow
def test_an_empty_log_folder_says_what_to_do(opened, tensorboard):
    tab = opened(tensorboard, before=lambda page: page.route("**/influence/runs", empty))
    tab.until(lambda: "No influence has been written yet" in tab.frame.inner_text("body"))


def empty(route) -> None:
    route.fulfill(json={"runs": [], "notes": []})


@pytest.mark.slow
def test_the_page_is_asked_for_at_once(opened, tensorboard):
    asked: list[str] = []

    def watch(page) -> None:
        page.on("request", lambda request: asked.append(urlsplit(request.url).path.rpartition("influence/")[2]))

    opened(tensorboard, before=watch).shows(matrix="correlation")
    asked = [each for each in asked if "plugin_entry" not in each and "favicon" not in each]
    assert asked[0] == "static/index.js"
    assert sorted(asked[1:4]) == ["runs", "static/page.js", "static/style.css"]
    assert not [each for each in asked[4:] if each.startswith("static/") or each == "runs"]
