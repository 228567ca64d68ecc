"""The trust and compare views in a real browser."""

import re

import numpy as np
import pandas as pd
import pytest

import bif_lightning as bl
import tab_runs
from tab_page import number

pytestmark = pytest.mark.browser


def test_trust_shows_the_measures_over_training_and_what_lies_behind(tab):
    tab.segment("view", "trust")
    tab.frame.wait_for_selector("[data-name=measures] canvas")
    tab.frame.wait_for_selector('[data-name=behind][data-of="320"] canvas')
    titles = tab.frame.locator("[data-name=measures] .measure-title").all_inner_texts()
    for title in ("Learning coefficient (LLC)", "R-hat of the loss", "Effective sample size (ESS)", "Score agreement",
                  "Noise ratio", "Drift", "Diverged chains", "Cost of the snapshot", "val_loss"):  # fmt: skip
        assert title in titles
    assert "+15.00 ± 0.42" in tab.frame.locator("[data-name=measures]").inner_text()
    behind = tab.named("behind").inner_text()
    for words in ("chain 3", "No chain diverged", "step_size", "0.00001", "3.5 s", "1.05 MB"):
        assert words in behind
    assert "Good. No check failed" in tab.frame.locator(".trust .banner").inner_text()


@pytest.mark.slow
def test_independent_draws_are_not_described_as_chains(opened, tensorboard):
    def independent(route) -> None:
        found = route.fetch().json()
        route.fulfill(json={**found, "runs": [{**run, "kind": "Subspace"} for run in found["runs"]]})

    before = lambda page: page.route("**/influence/runs", independent)  # noqa: E731
    tab = opened(tensorboard, "&view=view%3Dtrust", before=before)
    tab.frame.wait_for_selector("[data-name=measures] canvas")
    tab.frame.wait_for_selector('[data-name=behind][data-of="320"] canvas')
    titles = tab.frame.locator("[data-name=measures] .measure-title").all_inner_texts()
    assert not {"R-hat of the loss", "Effective sample size (ESS)", "Drift", "Diverged chains"} & set(titles)
    behind = tab.named("behind").inner_text()
    assert "Draws at step 320" in behind
    assert "Draws are independent" in behind
    assert "level off" not in behind


@pytest.mark.slow
def test_a_diverged_chain_is_named_and_the_chart_leads_to_the_step(tab):
    tab.segment("view", "trust")
    tab.frame.wait_for_selector("[data-name=measures] canvas")
    box = tab.frame.locator("[data-name=measures] .u-over").first.bounding_box()
    files = tab_runs.STEPS.index(tab_runs.DIVERGED)
    edge = 0.03 / 1.06
    x = box["x"] + box["width"] * (edge + files / (len(tab_runs.STEPS) - 1) * (1 - 2 * edge))
    tab.page.mouse.move(x, box["y"] + 20)
    tab.page.mouse.down()
    tab.page.mouse.up()
    tab.frame.wait_for_selector('[data-name=behind][data-of="40"]')
    assert "Chain 2 diverged at draw 31" in tab.named("behind").inner_text()
    assert "Read with care: diverged" in tab.frame.locator(".trust .banner").first.inner_text()


@pytest.mark.slow
def test_two_steps_are_compared(tab, logs):
    tab.segment("view", "compare")
    tab.frame.wait_for_selector('[data-name=maps][data-of^="digits/bif, step 320 | digits/bif, step 160"]')
    tab.named("other-step").select_option("10")
    tab.frame.wait_for_selector('[data-name=maps][data-of^="digits/bif, step 320 | digits/bif, step 10"]')
    run = bl.open_run(logs / "digits/bif")
    of = [
        pd.Series(run.correlation[-1, :, query].values).corr(
            pd.Series(run.correlation[0, :, query].values), method="spearman"
        )
        for query in range(tab_runs.QUERY)
    ]
    shown = number(tab.named("ranks").inner_text().removeprefix("Median rank correlation"))
    assert shown == pytest.approx(float(np.median(of)), abs=0.006)
    worst = int(np.argmin(of))
    tab.frame.wait_for_selector("[data-name=least] li")
    assert f"query-{1000 + worst}" in tab.named("least").locator("li").first.inner_text()
    canvas = tab.frame.locator("[data-part=difference] canvas")
    box = canvas.bounding_box()
    tab.page.mouse.move(box["x"] + 100, box["y"] + 100)
    readout = tab.until(lambda: (text := tab.named("compare-readout").inner_text()) and "difference" in text and text)
    left, right, difference = map(number, re.findall(r"(?:: |320, |difference )([^ ]+)", readout))
    assert difference == pytest.approx(left - right, abs=2e-3)
    tab.named("least").locator("button").first.click()
    tab.frame.wait_for_selector(f'[data-name=cards][data-of="query {worst} 320"]')


@pytest.mark.slow
def test_a_cell_of_a_comparison_leads_to_its_pair(tab):
    tab.segment("view", "compare")
    tab.frame.wait_for_selector('[data-name=maps][data-of^="digits/bif, step 320"]')
    tab.named("other-step").select_option("40")
    tab.frame.wait_for_selector('[data-name=maps][data-of^="digits/bif, step 320 | digits/bif, step 40"]')
    assert "digits/bif, step 40: read with care: diverged" in tab.frame.locator(".compare").inner_text()
    tab.frame.locator("[data-part=difference] canvas").focus()
    for key in ("Shift+ArrowDown", "Shift+ArrowRight"):
        tab.page.keyboard.press(key)
    readout = tab.until(lambda: (text := tab.named("compare-readout").inner_text()) and "difference" in text and text)
    tab.page.keyboard.press("Enter")
    tab.until(lambda: tab.curves() == [readout.partition(":")[0].removeprefix("mean around ")])


@pytest.mark.slow
def test_one_snapshot_is_not_compared_with_itself(opened, tensorboard):
    tab = opened(tensorboard, "&view=view%3Dcompare%26run%3Dwords%252Fbif")
    text = tab.until(lambda: tab.frame.locator(".compare .error").inner_text())
    assert "one and the same snapshot" in text


@pytest.mark.slow
def test_two_runs_are_compared_by_the_examples_that_both_have(tab):
    tab.segment("view", "compare")
    tab.named("other-run").select_option("other/bif")
    tab.frame.wait_for_selector('[data-name=maps][data-of^="digits/bif, step 320 | other/bif, step 320"]')
    assert "60 train examples and 30 queries that both have" in tab.named("ranks").inner_text()


@pytest.mark.slow
def test_runs_without_common_examples_are_refused_with_the_reason(opened, tensorboard):
    tab = opened(tensorboard, "&view=view%3Dcompare%26run%3Dwords%252Fbif%26other_run%3Dother%252Fbif", errors=True)
    text = tab.until(lambda: tab.frame.locator(".compare .error").inner_text())
    assert "no train examples of the same id" in text
