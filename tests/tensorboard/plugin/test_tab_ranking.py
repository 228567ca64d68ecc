"""The ranking in a real browser: the table, its filters, its order, what is taken away, keys and hostile words."""

import csv
import io

import numpy as np
import pytest

import bif_lightning as bl
import tab_runs
from tab_page import number

pytestmark = pytest.mark.browser


@pytest.fixture
def table(opened, tensorboard):
    """The ranking of the digits as a link opens it."""

    def open_at(link: str = "", **options):
        tab = opened(tensorboard, f"&view=view%3Dranking{link}", **options)
        settled(tab)
        return tab

    return open_at


def settled(tab, **wanted: str) -> None:
    parts = "".join(f'[data-{key}="{value}"]' for key, value in wanted.items())
    tab.frame.wait_for_selector(f".ranking-panel[data-of]{parts}", timeout=60_000)


def rows(tab) -> list[list[str]]:
    cells = "(row) => [...row.cells].map((cell) => cell.innerText)"
    return tab.frame.evaluate(f"[...document.querySelectorAll('.ranking-table tbody tr')].map({cells})")


def ids(tab) -> list[str]:
    return [row[2].splitlines()[0] for row in rows(tab)]


def summary(tab) -> str:
    return tab.named("ranking-summary").inner_text()


def write(tab, name: str, words: str) -> None:
    field = tab.named(f"words-{name}")
    field.fill(words)
    field.press("Enter")


def test_it_opens_first_and_its_numbers_are_those_of_python(opened, tensorboard, logs):
    tab = opened(tensorboard, "&view=nothing%3D1%26view%3D")  # a link that names no view
    settled(tab, over="training", rows="120")
    expected = bl.ranking(bl.open_run(logs / "digits/bif"))
    shown = rows(tab)
    assert ids(tab) == expected.id.tolist()[:50]
    assert [row[1] for row in shown] == [str(rank) for rank in range(1, 51)]
    for row, effect, share in zip(shown, expected.effect, expected.share_hurt, strict=False):
        assert number(row[4]) == pytest.approx(effect, abs=0.06)
        assert number(row[7]) == pytest.approx(100 * share, abs=0.51)
    assert "Mean effect, sd" in tab.frame.locator(".ranking-table thead").inner_text()
    assert "over the whole training: the sum over 6 snapshots, steps 10 to 320" in tab.frame.inner_text(
        ".ranking-panel"
    )
    assert "1 of 6 snapshots failed a check (diverged)" in tab.frame.inner_text(".ranking-panel .banner")
    tab.until(lambda: tab.frame.locator(".sparkline").count() == 50)
    said = tab.frame.locator(".sparkline").first.get_attribute("aria-label")
    first, last = expected.over_steps[0][0], expected.over_steps[0][-1]
    assert number(said.split(":")[1]) == pytest.approx(first, rel=0.06)
    assert number(said.split(",")[1]) == pytest.approx(last, rel=0.06)


@pytest.mark.slow
def test_queries_are_chosen_by_words_and_kept_in_the_link(table, logs):
    tab = table()
    write(tab, "of", "label:three")
    run = bl.open_run(logs / "digits/bif")
    expected = bl.ranking(run, run.query_label == 3)
    count = len(expected.attrs["queries"])
    tab.until(lambda: f"Mean effect on {count} of 40 queries" in tab.frame.inner_text(".ranking-panel"))
    tab.until(lambda: ids(tab) == expected.id.tolist()[:50])
    assert "of%3Dlabel%253Athree" in tab.page.url
    write(tab, "of", "nonsense:3")
    tab.until(lambda: "There is no column nonsense. There are label, id" in tab.frame.inner_text(".ranking-panel"))
    write(tab, "of", "nowhere")
    tab.until(lambda: "No query is chosen" in tab.frame.inner_text(".ranking-panel"))
    write(tab, "of", "")
    tab.until(lambda: "on all 40 queries" in tab.frame.inner_text(".ranking-panel"))


@pytest.mark.slow
def test_train_examples_are_filtered_by_label_text_column_and_number(table, logs):
    samples = bl.open_samples(logs / "digits/bif")[0]
    labels = np.array(samples.labels)
    sevens = int((labels == 7).sum())
    tab = table()
    for words, count in (
        ("label:7", sevens),
        ("label:seven", sevens),
        ("-label:7", 120 - sevens),
        ("label:7 hardness>0.5", int(((labels == 7) & (samples.columns["hardness"] > 0.5)).sum())),
        ("hardness<=0.05", 6),
        ('"=source":book', 60),
        ('"number 11"', 11),
        ("id:train-5", 11),
        ("rows:3,5-9", 6),
        ('text:"<script>"', 1),
    ):
        write(tab, "filter", words)
        settled(tab, rows=str(count))
        assert f"Shown are {count}." in summary(tab)
    write(tab, "filter", "color:3")
    tab.until(lambda: summary(tab).startswith("There is no column color. There are label, id, text, rows, effect"))
    assert rows(tab) == []
    write(tab, "filter", "hardness>much")
    tab.until(lambda: summary(tab) == "hardness>much: much is no number.")


@pytest.mark.slow
def test_columns_sort_and_pages_turn(table, logs):
    expected = bl.ranking(bl.open_run(logs / "digits/bif"))
    tab = table()
    tab.named("page-next").click()
    tab.until(lambda: ids(tab) == expected.id.tolist()[50:100])
    tab.named("sort-effect").click()
    tab.until(lambda: ids(tab) == expected.id.tolist()[::-1][:50])
    assert tab.frame.locator("th[aria-sort=descending]").inner_text().startswith("Mean effect")
    tab.named("sort-loss").click()
    by_loss = expected.sort_values(["loss", "train"])
    tab.until(lambda: ids(tab) == by_loss.id.tolist()[:50])
    tab.named("sort-id").click()
    tab.until(lambda: ids(tab)[:4] == ["train-0", "train-1", "train-2", "train-3"])
    assert "sort%3Did" in tab.page.url


@pytest.mark.slow
def test_a_step_is_ranked_by_its_effect_and_only_the_significant(table, logs):
    tab = table()
    tab.segment("rank-over", "correlation")
    settled(tab, over="step")
    run = bl.open_run(logs / "digits/bif")
    expected = bl.ranking(run, step=320, by="correlation")
    tab.until(lambda: ids(tab) == expected.id.tolist()[:50])
    sure = expected[expected.q_value <= 0.05]
    hurting, helping = (sure.effect < 0).sum(), (sure.effect > 0).sum()
    assert f"Of 120 train examples {hurting} hurt and {helping} help significantly" in summary(tab)
    tab.named("rank-sure").click()
    settled(tab, rows=str(len(sure)))
    tab.named("slider").fill("2")
    tab.frame.wait_for_selector('.ranking-panel[data-of="digits/bif 40"]')
    assert "Read with care: diverged" in tab.frame.inner_text(".ranking-panel .banner")


def saved(tab, name: str) -> tuple[str, str]:
    with tab.page.expect_download() as waiting:
        tab.named(name).click()
    return waiting.value.suggested_filename, waiting.value.path().read_text("utf-8")


@pytest.mark.slow
def test_the_csv_says_what_it_is_and_ids_are_a_list(table, logs):
    tab = table("%26of%3Dlabel%253A3%26filter%3Dlabel%253A7")
    run = bl.open_run(logs / "digits/bif")
    expected = bl.ranking(run, run.query_label == 3)
    expected = expected[expected.label == "seven"]
    name, text = saved(tab, "csv-ranking")
    assert name == "digits_bif_step_320_ranking.csv"
    found = list(csv.DictReader(io.StringIO(text)))
    assert [row["id"] for row in found] == expected.id.tolist()
    assert [int(row["rank"]) for row in found] == expected["rank"].tolist()
    np.testing.assert_allclose([float(row["effect"]) for row in found], expected.effect, rtol=1e-5)
    np.testing.assert_allclose([float(row["q_value"]) for row in found], expected.q_value, rtol=1e-4)
    assert {row["queries"] for row in found} == {"label:3"}
    assert {row["filter"] for row in found} == {"label:7"}
    assert {(row["quantity"], row["steps"], row["units"], row["run"]) for row in found} == {
        ("integrated", "10-320", "sd", "digits/bif")
    }
    assert "'=source" in text.splitlines()[0], "no formula for a spreadsheet"
    assert saved(tab, "ids-ranking") == ("digits_bif_step_320_ids.txt", "".join(f"{each}\n" for each in expected.id))


@pytest.mark.slow
def test_rows_are_chosen_by_hand_and_saved_alone(table):
    tab = table()
    chosen = [ids(tab)[3], ids(tab)[1]]
    for place in (3, 1):
        tab.frame.locator(".ranking-table tbody input").nth(place).check()
    assert "2 chosen" in tab.named("pages").inner_text()
    assert saved(tab, "ids-ranking")[1].splitlines() == chosen[::-1]
    tab.named("pick-none").click()
    assert tab.frame.locator("tr.picked").count() == 0
    tab.named("pick-page").check()
    tab.until(lambda: tab.frame.locator("tr.picked").count() == 50)


@pytest.mark.slow
def test_a_row_leads_to_the_matrix(table):
    tab = table()
    row = tab.frame.locator(".ranking-table tbody tr").nth(2)
    name = row.locator("button.id").inner_text()
    row.locator("button.id").click()
    tab.frame.wait_for_selector(".matrix-panel[data-step]")
    tab.until(lambda: name in tab.frame.locator(".subject").inner_text())


@pytest.mark.slow
def test_the_whole_table_works_by_keyboard(table):
    tab = table()
    tab.named("words-filter").focus()
    tab.page.keyboard.type("label:7")
    tab.page.keyboard.press("Enter")
    tab.until(lambda: "Shown are" in summary(tab))
    tab.page.keyboard.press("Tab")  # "Significant only"
    assert tab.frame.evaluate("document.activeElement.dataset.name") == "rank-sure"
    tab.named("sort-loss").focus()
    tab.page.keyboard.press("Enter")
    tab.until(lambda: tab.frame.locator("th[aria-sort=ascending]").inner_text().startswith("Loss"))
    assert tab.frame.evaluate("document.activeElement.dataset.name") == "sort-loss", "the focus stays"
    tab.frame.locator(".ranking-table tbody input").first.focus()
    tab.page.keyboard.press("Space")
    assert tab.frame.locator("tr.picked").count() == 1
    assert tab.named("play").get_attribute("aria-pressed") == "false", "a space there plays nothing"
    tab.named("words-filter").focus()
    tab.page.keyboard.press("2")
    assert tab.frame.locator(".ranking-panel").count() == 1, "a digit in a field is a word"


def test_hostile_words_stay_text(table):
    tab = table("%26filter%3Drows%253A5")
    settled(tab, rows="1")
    assert tab_runs.NASTY in rows(tab)[0][2]
    assert tab.frame.locator(".ranking-table b, .ranking-table script").count() == 0
    write(tab, "filter", tab_runs.NASTY)
    tab.until(lambda: "There is no column" in summary(tab) or "Shown are" in summary(tab))
    assert tab.frame.locator(".ranking-panel b, .ranking-panel script").count() == 0


@pytest.mark.slow
def test_an_observable_is_lowered_or_raised(table):
    tab = table("%26matrix%3Daccuracy%253Acorrelation")
    settled(tab, over="step")
    words = tab.frame.inner_text(".ranking-panel")
    assert "2 columns" in words
    assert "raise" in summary(tab)
    assert "Raises" in tab.frame.locator(".ranking-table thead").inner_text()


@pytest.mark.slow
def test_a_narrow_page_scrolls_the_table_alone(table):
    tab = table(viewport={"width": 480, "height": 800})
    wide = tab.frame.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]


def test_links_of_the_time_before_the_ranking_show_the_matrix(opened, tensorboard):
    tab = opened(tensorboard, "&view=run%3Ddigits%252Fbif%26window%3D0%252C9%252C0%252C9%26fresh%3Dview%3D")
    tab.shows(window="0,9,0,9")


@pytest.mark.slow
def test_selections_are_named_kept_in_the_link_and_used_again(table, opened, tensorboard):
    tab = table("%26filter%3Dlabel%253A7")
    shown = ids(tab)
    tab.named("name-train").fill("sevens & co")
    tab.named("keep-train").click()
    write(tab, "filter", "")
    settled(tab, rows="120")
    tab.named("use-train-sevens & co").click()
    tab.until(lambda: ids(tab) == shown)
    assert tab.named("words-filter").input_value() == 'is:"sevens & co"'
    write(tab, "filter", '-is:"sevens & co"')
    settled(tab, rows=str(120 - len(shown)))
    again = opened(tensorboard, tab.page.url.split("#influence")[1] + "%26view%3Dranking")
    settled(again, rows=str(120 - len(shown)))
    again.named("use-train-sevens & co").click()
    again.until(lambda: ids(again) == shown)
    again.named("forget-train-sevens & co").click()
    settled(again, rows="120")
    assert again.frame.locator("[data-name^=use-train]").count() == 0


@pytest.mark.slow
def test_the_matrix_and_a_curve_are_of_a_selection(table, logs):
    tab = table("%26of%3Dlabel%253A3")
    run = bl.open_run(logs / "digits/bif")
    threes = np.flatnonzero(run.query_label.values == 3)
    tab.named("name-query").fill("threes")
    tab.named("name-query").press("Enter")
    for place in (0, 1):
        tab.frame.locator(".ranking-table tbody input").nth(place).check()
    chosen = sorted(int(each.removeprefix("train-")) for each in ids(tab)[:2])
    tab.named("name-train").fill("worst")
    tab.named("keep-train").click()
    tab.named("rank-curve").click()
    tab.frame.wait_for_selector(".matrix-panel[data-step]")
    tab.until(lambda: tab.curves())
    expected = float(run.correlation[-1].values[np.ix_(chosen, threes)].mean())
    tab.until(lambda: number(tab.frame.locator(".curve-value").first.inner_text()) == pytest.approx(expected, abs=0.01))
    tab.named("only-train").select_option("worst")
    tab.named("only-query").select_option("threes")
    tab.shows(window=f"0,2,0,{len(threes)}")
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    text = tab.until(lambda: f"train-{chosen[1]}\n" in (said := tab.point(1, 1)) and said)
    assert f"query-{1000 + threes[1]}\n" in text
    value = text.split("±")[0].splitlines()[-1]
    assert number(value) == pytest.approx(float(run.correlation[-1, chosen[1], threes[1]]), abs=6e-4)
    found = list(csv.DictReader(io.StringIO(saved(tab, "csv-heatmap")[1])))
    assert {int(row["train"]) for row in found} == set(chosen)
    assert len(found) == 2 * len(threes)
    tab.named("only-train").select_option("")
    tab.shows(window=f"0,120,0,{len(threes)}")


@pytest.mark.slow
def test_a_selection_by_what_changes_is_kept_as_rows(table):
    tab = table("%26filter%3Dhurt%253E0.9%26over%3Dcorrelation")
    shown = ids(tab)
    tab.named("name-train").fill("many")
    tab.named("keep-train").click()
    assert tab.named("use-train-many").get_attribute("title").startswith("many: rows:")
    tab.named("use-train-many").click()
    tab.segment("rank-over", "training")
    settled(tab, over="training")
    tab.until(lambda: set(ids(tab)) == set(shown))
    tab.named("keep-train").click()
    tab.until(lambda: "Give the selection a name." in tab.frame.inner_text(".ranking-panel"))


@pytest.mark.slow
def test_an_observable_that_does_not_vary_says_so(table):
    tab = table("%26run%3Dwords%252Fbif%26matrix%3Dhits%253Ainfluence")
    tab.until(lambda: summary(tab).startswith("Undefined: hits is the same at every draw"))


@pytest.mark.slow
def test_two_steps_are_compared_for_a_selection_only(opened, tensorboard, logs):
    words = "selections%3Dtrain%252Cfew%252Crows%25253A4-6%26only_rows%3Dfew%26rows%3Ddataset%26columns%3Ddataset"
    tab = opened(tensorboard, f"&view=view%3Dcompare%26run%3Ddigits%252Fbif%26{words}%26other_step%3D10")
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url) if "/compare?" in request.url else None)
    tab.frame.wait_for_selector("[data-name=maps][data-of]")
    tab.named("slider").fill("3")
    tab.until(lambda: any("train_only=0e" in each and "r1=3&" in each for each in asked))
