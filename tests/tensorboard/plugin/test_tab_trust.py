"""The trust and compare views in a real browser."""

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
    for title in ("Learning coefficient (LLC)", "R-hat of the loss", "Effective draws (ESS)", "Score agreement",
                  "Noise ratio", "Drift", "Diverged chains", "Cost of the snapshot", "val_loss"):  # fmt: skip
        assert title in titles
    assert "+15.00 ± 0.42" in tab.frame.locator("[data-name=measures]").inner_text()
    behind = tab.named("behind").inner_text()
    for words in ("chain 3", "No chain diverged", "step_size", "0.00001", "3.5 s", "1.05 MB"):
        assert words in behind
    assert "Good." in tab.frame.locator(".trust .banner").inner_text()


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
    assert "Chain 2 left the posterior at draw 31" in tab.named("behind").inner_text()
    assert "Read with care: diverged" in tab.frame.locator(".trust .banner").first.inner_text()


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
    left, right, difference = (number(readout.split(word)[1]) for word in ("left", "right", "difference"))
    assert difference == pytest.approx(left - right, abs=2e-3)
    tab.named("least").locator("button").first.click()
    tab.frame.wait_for_selector(f'[data-name=cards][data-of="query {worst} 320"]')


def test_two_runs_are_compared_by_the_examples_that_both_have(tab):
    tab.segment("view", "compare")
    tab.named("other-run").select_option("other/bif")
    tab.frame.wait_for_selector('[data-name=maps][data-of^="digits/bif, step 320 | other/bif, step 320"]')
    assert "60 train examples and 30 queries that both have" in tab.named("ranks").inner_text()


def test_runs_without_common_examples_are_refused_with_the_reason(opened, tensorboard):
    tab = opened(tensorboard, "&view=view%3Dcompare%26run%3Dwords%252Fbif%26other_run%3Dother%252Fbif", errors=True)
    text = tab.until(lambda: tab.frame.locator(".compare .error").inner_text())
    assert "share no examples" in text
