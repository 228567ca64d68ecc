"""Cards, the chosen pair, texts and tokens in a real browser."""

import numpy as np
import pytest

import bif_lightning as bl
import tab_runs
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


def test_a_query_has_cards_of_what_helps_and_hurts_it(tab, logs):
    choose(tab, "pick-query", "query-1003")
    tab.frame.wait_for_selector('[data-name=cards][data-of="query 3 320"]')
    top = bl.top(bl.open_run(logs / "digits/bif"), query=3, k=5, by="correlation")
    shown = cards(tab)
    assert shown["helps"] == top[top.effect == "helps"].id.tolist()
    assert shown["hurts"] == top[top.effect == "hurts"].id.tolist()
    first = tab.frame.locator(".card-column.helps .card").first
    assert f"± {tab_runs.ERROR:.3f}" in first.inner_text()
    tab.wait("[...document.querySelectorAll('.card img')].every(one => one.naturalWidth === 8)")
    assert "75% too" in tab.frame.locator("section[aria-label='Helps and hurts'] .meaning").inner_text()
    first.click()
    tab.until(lambda: tab.curves() == [f"{shown['helps'][0]} → query-1003"])


def test_cards_say_how_ranks_changed_since_an_earlier_step(tab, logs):
    choose(tab, "pick-query", "query-1003")
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
            assert "other sign at step 10" in text


def test_a_train_example_has_cards_of_the_queries_it_changes(tab, logs):
    tab.segment("side", "train")
    choose(tab, "pick-train", "train-77")
    tab.frame.wait_for_selector('[data-name=cards][data-of="train 77 320"]')
    row = bl.open_run(logs / "digits/bif").correlation[-1, 77]
    assert cards(tab)["helps"][0] == str(row.query_id[int(row.values.argmax())].values)
    assert cards(tab)["hurts"][0] == str(row.query_id[int(row.values.argmin())].values)


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


def test_the_pair_shows_every_matrix_with_its_error_and_text_as_text(tab):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.until(lambda: "train-5\n" in tab.point(*tab_runs.FLIPS))
    tab.click(*tab_runs.FLIPS)
    tab.frame.wait_for_selector('[data-name=pair][data-of="5 3 320"]')
    pair = tab.named("pair").inner_text()
    assert tab_runs.NASTY in pair
    assert "correlation" in pair
    assert "influence" in pair
    assert "nat²" in pair
    assert "+0.350 ± 0.040" in pair
    assert tab.frame.locator("b, script:not([type=module])").count() == 0, "no markup of the dump"


def test_texts_are_shown_in_full_and_the_bad_verdict_with_them(opened, tensorboard):
    tab = opened(tensorboard, "&view=" + "run%3Dwords%252Fbif%26chosen%3D3x2")
    tab.shows(run="words/bif", step="5")
    assert "Read with care: noisy" in tab.frame.locator(".matrix-panel .banner").inner_text()
    tab.frame.wait_for_selector('[data-name=pair][data-of="3 2 5"]')
    texts = tab.frame.locator(".pair-text").all_inner_texts()
    assert [len(text.split()) for text in texts] == [40, 40]
    assert tab.frame.locator("img").count() == 0


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
    assert "white: within its error" in tab.named("token-readout").inner_text()


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


def test_what_has_no_tokens_shows_the_texts_alone(opened, tensorboard):
    tab = opened(tensorboard, "&view=run%3Dwords%252Fbif%26chosen%3D3x2")
    tab.frame.wait_for_selector('[data-name=pair][data-of="3 2 5"]')
    assert not tab.named("tokens").is_visible()


def colour_of(token) -> str:
    return token.evaluate("one => one.style.background")


def rgb(token) -> tuple[int, ...]:
    return tuple(int(part) for part in colour_of(token).removeprefix("rgb(").removesuffix(")").split(","))
