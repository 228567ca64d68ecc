"""The example of tokens in training: kinds of tokens, its tokenizers, and a page that holds what the dumps say."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_gpt
import token_page

import bif_lightning as bl
from small_language import sequences, shared_by_tokens


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        ("    ", "space"),
        ("\n", "space"),
        ("):", "punctuation"),
        (" [(", "bracket"),
        (" return", "keyword"),
        (" self", "name"),
        ("42", "number"),
        ('"""', "punctuation"),
        ("a.b", None),
    ],
)
def test_kinds_of_tokens(token: str, kind: str | None) -> None:
    assert tiny_gpt.kind(token) == kind


def test_a_tokenizer_gives_back_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["def f(x):\n    return [x, 1]\n" * 50]
    for name in ("as it is", "without the package"):
        if name == "without the package":
            monkeypatch.setitem(sys.modules, "tokenizers", None)
        tokenizer, tokens, words = tiny_gpt.tokenized(texts)
        assert "".join(tokenizer.decode([number]) for number in tokens[0]) == texts[0]
        assert max(tokens[0]) < words


def test_the_page_holds_every_value(tmp_path: Path) -> None:
    found = shared_by_tokens()
    sides = [
        bl.Samples(
            ids=tuple(f"{side}{row}" for row in range(count)),
            index=np.arange(count),
            tokens=tuple(tuple(" <b>" for _ in item["input_ids"]) for item in sequences(count, seed)),
        )
        for side, count, seed in (("t", 9, 0), ("q", 4, 1))
    ]
    bl.write_samples(tmp_path, *sides)
    dumps = [bl.write_dump(tmp_path, found, step=step, epoch=0, train=sides[0], query=sides[1]) for step in (1, 10)]
    read = _snapshots(dumps)
    page = token_page.page(read)
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page)
    assert data is not None
    assert found.tokens is not None
    snapshots = json.loads(data[1])["snapshots"]
    assert [each["step"] for each in snapshots] == [1, 10]
    shape = np.array(snapshots[0]["value"]).shape
    assert shape == (2, len(found.tokens.query))
    assert page.count('<span class="t">') == len(found.tokens.query)
    assert " <b>" not in page.partition("<pre>")[2].partition("</pre>")[0]
    np.testing.assert_allclose(snapshots[0]["value"], read[0].by_token.value, atol=1e-4)


def _snapshots(dumps: list[Path]) -> list[token_page.Snapshot]:
    out = []
    for dump in dumps:
        stored = bl.open_tokens(dump)
        rows = ["even" if place % 2 else "odd" for place in stored.train.position]
        columns = ["even" if place % 2 else "odd" for place in stored.query.position]
        by_kind, names, across = stored.tokens.group_means(rows, columns)
        single = [f"{place:09d}" for place in range(len(columns))]
        by_token, _, _ = stored.tokens.group_means(rows, single)
        out.append(token_page.Snapshot(int(dump.stem[-9:]), names, across, by_kind, by_token, stored))
    return out
