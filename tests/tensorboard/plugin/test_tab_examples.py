"""Cards, the chosen pair, texts and tokens in a real browser."""

import warnings

import numpy as np
import pytest

import bif_lightning as bl
import tab_runs
from bif_lightning.exceptions import SkippedDumpWarning
from tab_page import number

pytestmark = pytest.mark.browser


def cards(tab) -> dict[str, list[str]]:
    """Ids on the cards that help and hurt."""
    return {
        kind: [one.split("\n")[1] for one in tab.frame.locator(f".card-column.{kind} .card").all_inner_texts()]
        for kind in ("helps", "hurts")
    }


def choose(tab, name: str, words: str) -> None:
    tab.named(name).click()
    tab.named(name).fill(words)
    tab.named(name).press("Enter")


def test_a_query_has_cards_over_the_whole_training_with_the_step_beside(tab, logs):
    choose(tab, "pick-query", "query-1003")
    tab.frame.wait_for_selector('[data-name=cards][data-of="query 3 320"][data-over=training]')
    run = bl.open_run(logs / "digits/bif")
    top = bl.top(run, query=3, k=5)
    assert set(top.quantity) == {"integrated"}
    shown = cards(tab)
    assert shown["helps"] == top[top.effect == "helps"].id.tolist()
    assert shown["hurts"] == top[top.effect == "hurts"].id.tolist()
    first = tab.frame.locator(".card-column.helps .card").first
    beside = float(run.correlation.sel(step=320, query=3)[int(top.train[0])])
    text = first.locator(".beside").inner_text()
    assert text.startswith("step 320: ")
    assert number(text.partition(": ")[2]) == pytest.approx(beside, abs=0.001)
    assert "sd" in first.locator(".card-value").inner_text()
    assert "sum over 6 snapshots, steps 10 to 320" in tab.named("ranked-by").inner_text()
    tab.wait("[...document.querySelectorAll('.card img')].every(one => one.naturalWidth === 8)")
    first.click()
    tab.until(lambda: tab.curves() == [f"{shown['helps'][0]} → query-1003"])


@pytest.mark.slow
def test_a_switch_ranks_by_the_step_and_stays_in_the_link(tab, logs, opened, tensorboard):
    choose(tab, "pick-query", "query-1003")
    tab.named("over").locator('[data-value="correlation"]').focus()
    tab.page.keyboard.press("Enter")
    tab.frame.wait_for_selector('[data-name=cards][data-of="query 3 320"][data-over=step]')
    assert tab.frame.evaluate("document.activeElement.dataset.value") == "correlation", "the focus stays"
    top = bl.top(bl.open_run(logs / "digits/bif"), query=3, k=5, by="correlation")
    shown = cards(tab)
    assert shown["helps"] == top[top.effect == "helps"].id.tolist()
    assert shown["hurts"] == top[top.effect == "hurts"].id.tolist()
    first = tab.frame.locator(".card-column.helps .card").first
    assert f"± {tab_runs.ERROR:.3f}" in first.inner_text()
    assert "by the correlation at step 320 alone" in tab.named("ranked-by").inner_text()
    words = tab.frame.locator("section[aria-label='Helps and hurts'] .meaning")
    assert "How stable a ranking by the correlation is was not measured" in words.inner_text()
    assert "over%3Dcorrelation" in tab.frame.evaluate("location.hash")
    again = opened(tensorboard, "&view=query%3D3%26over%3Dcorrelation%26run%3Ddigits%252Fbif")
    again.frame.wait_for_selector('[data-name=cards][data-of="query 3 320"][data-over=step]')
    tab.page.keyboard.press("w")
    tab.frame.wait_for_selector('[data-name=cards][data-of="query 3 320"][data-over=training]')
    tab.page.keyboard.press("w")
    tab.until(lambda: "by the effect at step 320 alone" in tab.named("ranked-by").inner_text())
    assert "75% too" in words.inner_text(), "the stability of the ranking that is shown"
    first = number(tab.frame.locator(".card-column.helps .card-value").first.inner_text())
    influence = bl.open_run(logs / "digits/bif").influence.sel(step=320, query=3)
    assert first == pytest.approx(-float(influence.min()), abs=0.001), "above 0 helps"


@pytest.mark.slow
def test_few_snapshots_are_ranked_as_top_ranks_them(opened, tensorboard, logs):
    tab = opened(tensorboard, "&view=run%3Dother%252Fbif%26query%3D4", errors=True)
    tab.frame.wait_for_selector('[data-name=cards][data-of="query 4 320"][data-over=step]')
    with warnings.catch_warnings():  # of the dump that is cut
        warnings.simplefilter("ignore", SkippedDumpWarning)
        top = bl.top(bl.open_run(logs / "other/bif"), query=4, k=5)
    assert set(top.quantity) == {"influence"}
    assert cards(tab)["helps"] == top[top.effect == "helps"].id.tolist()
    assert "Ranked by the effect at step 320 alone" in tab.named("ranked-by").inner_text()


@pytest.mark.slow
def test_cards_say_how_ranks_changed_since_an_earlier_step(tab, logs):
    choose(tab, "pick-query", "query-1003")
    tab.segment("over", "correlation")
    tab.named("since").select_option("10")
    tab.frame.wait_for_selector(".card .moved")
    run = bl.open_run(logs / "digits/bif")
    for card in tab.frame.locator(".card-column.helps .card").all():
        text = card.inner_text()
        row = int(text.split("\n")[1].removeprefix("train-"))
        before = run.correlation[0, :, 3].values
        if before[row] > 0:
            assert f"(was {(before > before[row]).sum() + 1})" in text
        else:
            assert "opposite sign at step 10" in text


@pytest.mark.slow
def test_a_train_example_has_cards_of_the_queries_it_changes(tab, logs):
    tab.segment("side", "train")
    choose(tab, "pick-train", "train-77")
    tab.frame.wait_for_selector('[data-name=cards][data-of="train 77 320"]')
    assert "Ranked by the effect at step 320 alone" in tab.named("ranked-by").inner_text()
    row = -bl.open_run(logs / "digits/bif").influence[-1, 77]
    assert cards(tab)["helps"][0] == str(row.query_id[int(row.values.argmax())].values)
    assert cards(tab)["hurts"][0] == str(row.query_id[int(row.values.argmin())].values)


@pytest.mark.slow
def test_an_example_is_found_by_what_it_says(tab):
    tab.segment("side", "train")
    tab.named("pick-train").click()
    tab.named("pick-train").fill("number 99")
    option = tab.frame.locator("[role=option]")
    assert option.count() == 1
    tab.named("pick-train").press("ArrowDown")
    assert tab.named("pick-train").get_attribute("aria-activedescendant") == option.get_attribute("id")
    tab.named("pick-train").press("Enter")
    tab.frame.wait_for_selector('[data-name=cards][data-of="train 99 320"]')


@pytest.mark.slow
def test_the_pair_shows_every_matrix_with_its_error_and_text_as_text(tab):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.until(lambda: "train-5\n" in tab.point(*tab_runs.FLIPS))
    tab.click(*tab_runs.FLIPS)
    tab.frame.wait_for_selector('[data-name=pair][data-of="5 3 320"]')
    pair = tab.named("pair").inner_text()
    assert tab_runs.NASTY in pair
    assert "correlation" in pair
    assert "effect" in pair
    assert "nat²" in pair
    assert "+0.350 ± 0.040" in pair
    assert tab.frame.locator("b, script:not([type=module])").count() == 0, "no markup of the dump"


@pytest.mark.slow
def test_texts_are_shown_in_full_and_the_bad_verdict_with_them(opened, tensorboard):
    tab = opened(tensorboard, "&view=" + "run%3Dwords%252Fbif%26chosen%3D3x2")
    tab.shows(run="words/bif", step="5")
    assert "Read with care: noisy" in tab.frame.locator(".matrix-panel .banner").inner_text()
    tab.frame.wait_for_selector('[data-name=pair][data-of="3 2 5"]')
    texts = tab.frame.locator(".pair-text").all_inner_texts()
    assert [len(text.split()) for text in texts] == [40, 40]
    assert tab.frame.locator("img").count() == 0
    assert tab.named("clear").get_attribute("aria-pressed") == "true", "a noisy snapshot is not as loud as a sound one"


@pytest.mark.slow
def test_what_never_varies_is_undefined_with_the_reason(opened, tensorboard):
    tab = opened(tensorboard, "&view=run%3Dwords%252Fbif%26matrix%3Dhits%253Acorrelation%26over%3Dcorrelation")
    tab.shows(run="words/bif", matrix="hits:correlation")
    assert "Undefined everywhere: hits is the same at every draw" in tab.frame.locator(".legend").inner_text()
    assert tab.frame.locator(".matrix-panel .meaning").inner_text().startswith("Purple, above 0")
    tab.until(lambda: "Undefined: hits is the same at every draw" in tab.named("cards").inner_text())
    tab.segment("over", "influence")
    tab.until(lambda: "None: the effect on hits is 0 everywhere" in tab.named("cards").inner_text())


@pytest.fixture
def pair(opened, tensorboard, logs):
    """The tab at the two sequences with the clearest tokens, and what the dump says of them."""
    tokens = bl.open_tokens(logs / "tokens/bif/step=000000007.h5")
    rows = max(np.ndindex(9, 4), key=lambda rows: int((clearness(tokens.correlation(*rows)) > 1.96).sum()))
    tab = opened(tensorboard, f"&view=run%3Dtokens%252Fbif%26chosen%3D{rows[0]}x{rows[1]}")
    tab.frame.wait_for_selector("[data-name=tokens][data-of]")
    return tab, rows, tokens.correlation(*rows)


def clearness(block) -> np.ndarray:
    """Standard errors from zero."""
    return np.nan_to_num(np.abs(block["value"].values) / block["standard_error"].values)


def bl_tokens(logs) -> list[tuple[tuple[str, ...], ...]]:
    return [samples.tokens for samples in bl.open_samples(logs / "tokens/bif")]


def test_the_tokens_of_a_pair_are_shown_as_text(pair, logs):
    tab, rows, _ = pair
    for side, name, row in zip(bl_tokens(logs), ("train", "query"), rows, strict=True):
        assert tab.named(f"tokens-{name}").locator(".token").all_inner_texts() == list(side[row])
    assert tab.frame.locator(".tokens b, .tokens code").count() == 0
    assert "Without a colour: within its error" in tab.named("token-readout").inner_text()


def test_before_one_points_only_tokens_clear_of_zero_are_coloured(pair):
    tab, rows, _ = pair
    asked = f"./tokens?run=tokens%2Fbif&step=7&matrix=correlation&train={rows[0]}&query={rows[1]}"
    of = tab.frame.evaluate(f"fetch('{asked}').then(answer => answer.json())")
    for side in ("train", "query"):
        whole, error = (np.array(of[side][name], float) for name in ("whole", "whole_standard_error"))
        clear = np.abs(whole) > 1.96 * error
        tokens = tab.named(f"tokens-{side}").locator(".token").all()
        paper = {colour_of(token) for token, sure in zip(tokens[1:], clear[1:], strict=True) if not sure}
        assert len(paper) <= 1
        for token, value, sure in zip(tokens[1:], whole[1:], clear[1:], strict=True):
            if sure:
                red, _, blue = rgb(token)
                assert colour_of(token) not in paper
                assert (blue > red) == (value > 0)
        assert colour_of(tokens[0]) == ""
        assert tokens[0].get_attribute("title").startswith("no loss")


def test_tokens_are_coloured_by_their_influence_on_the_one_pointed_at(pair):
    tab, _, block = pair
    value = block["value"].values
    train, query = (tab.named(f"tokens-{side}").locator(".token") for side in ("train", "query"))
    assert block.train_position.values.tolist() == list(range(1, len(train.all())))
    clear = clearness(block) > 1.96
    row, column = np.unravel_index(np.argmax(np.abs(value) * clear), value.shape)
    assert clear[row, column]
    query.nth(int(column) + 1).hover()
    assert colour_of(train.nth(0)) == "", "a token without a loss has no colour"
    paper = colour_of(train.nth(int(np.flatnonzero(~clear[:, column])[0]) + 1)) if not clear[:, column].all() else None
    for at, token in enumerate(train.all()[1:]):
        red, _, blue = rgb(token)
        if not clear[at, column]:
            assert colour_of(token) == paper
        else:
            assert (blue > red) == (value[at, column] > 0), "blue helps, orange hurts"
    said = tab.named("token-readout").inner_text()
    assert number(said.split("”, ")[-1]) == pytest.approx(float(value[row, column]), abs=0.006)
    train.nth(int(row) + 1).click()
    tab.page.mouse.move(5, 5)
    assert "kept" in (train.nth(int(row) + 1).get_attribute("class") or "")
    red, _, blue = rgb(query.nth(int(column) + 1))
    assert (blue > red) == (value[row, column] > 0)
    train.nth(int(row) + 1).press("ArrowLeft")
    assert tab.named("live").inner_text().startswith("\u201c")


@pytest.mark.slow
def test_what_has_no_tokens_shows_the_texts_alone(opened, tensorboard):
    tab = opened(tensorboard, "&view=run%3Dwords%252Fbif%26chosen%3D3x2")
    tab.frame.wait_for_selector('[data-name=pair][data-of="3 2 5"]')
    assert not tab.named("tokens").is_visible()


def colour_of(token) -> str:
    return token.evaluate("one => one.style.background")


def rgb(token) -> tuple[int, ...]:
    return tuple(int(part) for part in colour_of(token).removeprefix("rgb(").removesuffix(")").split(","))
