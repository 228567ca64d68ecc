"""`bif-lightning show` and `top` on a real run: what they print, and what they say when something is wrong."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bif_lightning.commands.cli import main
from bif_lightning.commands.report import summary_text
from bif_lightning.results.estimate import CORRELATION_SIGN, INFLUENCE_SIGN
from bif_lightning.results.integrated import INTEGRATED_SIGN

Capture = pytest.CaptureFixture[str]
COMMAND = [sys.executable, "-c", "import sys; from bif_lightning.commands.cli import main; sys.exit(main())"]


def answer(capsys: Capture, *arguments: object) -> Any:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def refusal(capsys: Capture, *arguments: object) -> tuple[int, str]:
    """Exit status and the one line that was printed."""
    status = main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.splitlines()[-1]
    assert line.startswith("bif-lightning: error: ")
    assert "Traceback" not in printed.err
    return status, line


def test_show_tells_each_step(run: Path, capsys: Capture) -> None:
    assert main(["show", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "5 train x 3 query examples, 3 snapshots, influence on loss, margin" in printed
    rows = [line.split() for line in printed.splitlines() if line.strip().startswith(("0 ", "10 ", "200 "))]
    shared = ["2.303", "+15.25", "±", "0.75", "1.01", "12.3", "-0.5"]
    bias = ["0.12", "1.2", "0.38"]
    assert rows == [
        ["0", "good", *shared, "-", "-", *bias, "4/4", "3.21"],
        ["10", "good", *shared, "0.91", "0.86", *bias, "4/4", "3.21"],
        ["200", "diverged", *shared, "0.91", "0.86", *bias, "3/4", "3.21"],
    ]
    assert "step 200: diverged: 1 of 4 chains left the posterior" in printed
    assert "step 0: good" not in printed
    assert "step 200: chain 3 diverged at draw 4" in printed
    assert "note: the loss has dropout" in printed
    assert ["cat", "-0.250", "±", "0.010", "+0.500", "±", "0.010"] in [line.split() for line in printed.splitlines()]
    words = " ".join(printed.split())
    assert CORRELATION_SIGN in words, "the table of labels needs it"
    assert INFLUENCE_SIGN not in words
    assert "ESS effective number" not in words
    assert "--legend explains the columns" in words
    ranked = (
        "`bif-lightning top` ranks the run by the influence at step 200; from 5 snapshots on by that over the whole"
    )
    assert ranked in words


def test_show_explains_its_columns_when_asked(run: Path, capsys: Capture) -> None:
    assert main(["show", str(run), "--legend"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for text in (INFLUENCE_SIGN, CORRELATION_SIGN, INTEGRATED_SIGN, "ESS effective number of draws"):
        assert text in words


def test_show_one_step(run: Path, capsys: Capture) -> None:
    assert main(["show", str(run), "--step", "10"]) == 0
    printed = capsys.readouterr().out
    assert "3 snapshots, influence on loss, margin\nshown is step 10\n" in printed
    rows = [line.split()[0] for line in printed.splitlines() if line.strip().startswith(("0 ", "10 ", "200 "))]
    assert rows == ["10"]
    assert "Mean correlation by label at step 10" in printed
    assert "diverged" not in printed
    assert "by the influence at step 200" in printed, "of the run"
    shown = answer(capsys, "show", run, "--step", 10)
    assert [row["step"] for row in shown["steps"]] == [10]
    assert shown["all_steps"] == [0, 10, 200]
    status, line = refusal(capsys, "show", run, "--step", 90)
    assert (status, "no step 90; the nearest are 10, 0, 200" in line) == (2, True)


def test_a_long_run_is_shortened(run: Path, capsys: Capture) -> None:
    shown = answer(capsys, "show", run)
    good, gone = shown["steps"][1], shown["steps"][2]
    shown["steps"] = [(gone if step < 5 else good) | {"step": 10 * step} for step in range(57)]
    shown["all_steps"] = [row["step"] for row in shown["steps"]]
    printed = summary_text(shown)
    assert "57 snapshots, influence on loss, margin\nshown are 20 of them; --step shows a single one" in printed
    rows = [int(line.split()[0]) for line in printed.splitlines() if line.endswith(" 3.21")]
    assert len(rows) == 20
    assert (rows[0], rows[-1]) == (0, 560)
    assert max(later - earlier for earlier, later in pairwise(rows)) == 30
    assert "also diverged: step 0, 10; --step says why" in printed
    for step in (20, 30, 40):
        assert f"step {step}: diverged: 1 of 4 chains" in printed


def test_columns_without_a_value_are_left_out(run: Path, capsys: Capture) -> None:
    shown = answer(capsys, "show", run)
    for row in shown["steps"]:
        row |= {"rhat": None, "noise_ratio": None}
    head = next(line for line in summary_text(shown).splitlines() if "verdict" in line)
    assert " ".join(head.split()) == (
        "step verdict loss at w* LLC ESS drift ranks groups LLC ratio control chains seconds"
    )


def test_show_as_json(run: Path, capsys: Capture) -> None:
    shown = answer(capsys, "show", run)
    assert (shown["train"], shown["query"], shown["observables"]) == (5, 3, ["loss", "margin"])
    assert [(row["step"], row["chains"], row["diverged"]) for row in shown["steps"]] == [
        (0, 4, 0),
        (10, 4, 0),
        (200, 3, 1),
    ]
    assert [row["score_agreement"] for row in shown["steps"]] == [None, 0.91, 0.91]
    assert shown["labels"]["train_label"] == ["cat", "dog"]
    assert shown["labels"]["mean_correlation"] == [[-0.25, 0.5], [0.125, -0.75]]
    assert shown["labels"]["step"] == 200
    assert shown["ranked_by"] == "influence"
    shown["ranked_by"] = "integrated"
    assert "ranks the run by its influence over the whole training, 3 snapshots." in summary_text(shown)


def test_show_without_labels(own_run: Path, capsys: Capture) -> None:
    assert answer(capsys, "show", own_run)["labels"] is None
    assert main(["show", str(own_run)]) == 0
    assert "by label" not in capsys.readouterr().out


def test_labels_beyond_five_show_only_what_is_outside_its_error(run: Path, capsys: Capture) -> None:
    shown = answer(capsys, "show", run)
    shown["labels"] |= {
        "train_label": ["a"],
        "query_label": list("abcdef"),
        "mean_correlation": [[0.5, 0.019, -0.021, 0.0, -1.0, float("nan")]],
        "standard_error": [[0.01] * 6],
    }
    rows = [line.split() for line in summary_text(shown).splitlines()]
    assert ["a", "+0.50", ".", "-0.02", ".", "-1.00", "."] in rows


def test_many_labels_are_not_printed(run: Path, capsys: Capture) -> None:
    shown = answer(capsys, "show", run)
    shown["labels"]["train_label"] = [str(i) for i in range(13)]
    assert "13 x 2 labels are too many to print; --json" in summary_text(shown)


def test_top_ranks_helpful_then_harmful(run: Path, capsys: Capture) -> None:
    shown = answer(capsys, "top", run, "--query", 1, "--step", 200)
    examples = shown["examples"]
    assert [(row["effect"], row["train"], row["id"], row["label"]) for row in examples] == [
        ("helps", 2, "猫/2", "cat"),
        ("helps", 0, "cat/1", "cat"),
        ("hurts", 4, "dog/3", "dog"),
        ("hurts", 1, "dog/1", "dog"),
    ]
    assert examples[0]["value"] == pytest.approx(-6.0)
    assert examples[0]["standard_error"] == pytest.approx(0.3)
    assert (shown["query"], shown["id"], shown["step"], shown["by"]) == (1, "7", 200, "influence")
    assert shown["sign"] == INFLUENCE_SIGN
    assert shown["top_stability"] == 0.5
    assert shown["verdict"].startswith("diverged: 1 of 4 chains")
    assert answer(capsys, "top", run, "--query", 2, "--step", 200)["top_stability"] is None


def test_top_ranks_by_all_snapshots_and_shows_the_last_beside(run: Path, capsys: Capture) -> None:
    shown = answer(capsys, "top", run, "--query", 1, "--by", "integrated")
    scale = 3 / np.std([-0.5, 0.001, -2.0, 0.0, 1.5])  # the columns of the three snapshots are multiples of one another
    assert (shown["by"], shown["steps"], shown["step"]) == ("integrated", [0, 10, 200], 200)
    assert [row["train"] for row in shown["examples"]] == [2, 0, 4, 1]
    assert shown["examples"][0]["value"] == pytest.approx(-2 * scale, rel=1e-6)
    assert (shown["examples"][0]["snapshot"], shown["examples"][0]["snapshot_standard_error"]) == pytest.approx(
        (-6, 0.3)
    )
    doubted = [row["verdict"] for row in answer(capsys, "show", run)["steps"] if row["verdict"] != "good"]
    verdict = f"{len(doubted)} of 3 snapshots ({', '.join(dict.fromkeys(doubted))})"
    assert (shown["sign"], shown["verdict"]) == (INTEGRATED_SIGN, verdict)
    assert main(["top", str(run), "--query", "1", "--by", "integrated"]) == 0
    printed = capsys.readouterr().out
    assert "over 3 snapshots, steps 0 to 200: integrated influence on loss" in printed
    assert "± bound on its standard error" in printed
    assert f"Not good are {verdict}" in printed
    best = next(line for line in printed.splitlines() if line.startswith("helps"))
    assert "-6.00 ± 0.30" in best


def test_top_of_all_snapshots_takes_no_step(run: Path, capsys: Capture) -> None:
    status, line = refusal(capsys, "top", run, "--query", "1", "--by", "integrated", "--step", "10")
    assert status == 2
    assert "leave one of them out" in line


def test_top_by_correlation_agrees_on_who_helps(run: Path, capsys: Capture) -> None:
    shown = answer(capsys, "top", run, "--query", "q/a", "--by", "correlation", "--step", 10, "--k", 1)
    assert [(row["effect"], row["train"]) for row in shown["examples"]] == [("helps", 2), ("hurts", 4)]
    assert shown["examples"][0]["value"] == pytest.approx(np.tanh(2.2), rel=1e-6)
    assert shown["sign"] == CORRELATION_SIGN


def test_a_query_is_a_row_before_it_is_an_id(run: Path, capsys: Capture) -> None:
    assert answer(capsys, "top", run, "--query", "2")["id"] == "q/c"
    assert answer(capsys, "top", run, "--query", "7")["query"] == 1, "no row 7: the id"


def test_top_of_an_observable_with_columns(run: Path, capsys: Capture) -> None:
    shown = answer(capsys, "top", run, "--query", "hard", "--observable", "margin", "--k", 1)
    assert [(row["effect"], row["train"]) for row in shown["examples"]] == [("lowers", 4), ("raises", 2)]
    assert (shown["axis"], shown["query"], shown["id"]) == ("margin_column", 1, "hard")


def test_top_as_text_marks_doubtful_signs_and_escapes_controls(run: Path, capsys: Capture) -> None:
    assert main(["top", str(run), "--query", "1", "--step", "200"]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[1]: line for line in printed.splitlines() if line.startswith(("helps", "hurts"))}
    assert "-6.00 ± 0.30" in lines["2"]
    assert "two lines" in lines["2"]
    assert "?" in lines["1"]
    assert "?" not in lines["2"] + lines["0"] + lines["4"]
    assert "? = within 1.96 standard errors of 0" in printed
    assert "the other half finds 50% too" in printed
    assert "The snapshot is diverged: 1 of 4 chains" in printed
    assert "\x1b" not in printed
    assert lines["4"].endswith("…")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "q/b"], "no query is called 'q/b'; the nearest are 'q/"),
        (["--query", "0", "--step", "11"], "the run has no step 11; the nearest are 10, 0, 200"),
        (["--query", "5000"], "no query has the number 5000: there are 3, with the numbers 0 to 2"),
        (["--query", "2", "--observable", "margin"], "no margin_column has the number 2: there are 2"),
        (["--query", "0", "--observable", "marign"], "no observable 'marign'; it has 'loss', 'margin'"),
        (["--query", "0", "--k", "0"], "k is 0; it must be at least 1"),
    ],
)
def test_a_wrong_question_is_a_usage_error(run: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    status, line = refusal(capsys, "top", run, *arguments)
    assert status == 2
    assert message in line


def test_paths_that_are_no_run(run: Path, tmp_path: Path, capsys: Capture) -> None:
    status, line = refusal(capsys, "show", tmp_path / "missing")
    assert status == 2
    assert "missing does not exist" in line
    status, line = refusal(capsys, "show", run.parent)
    assert status == 2
    assert f"there are some in {run}" in line


@pytest.mark.parametrize(
    ("name", "words"), [("samples.h5", "describes the examples"), ("integrated.h5", "has the influence")]
)
def test_files_of_a_run_that_are_no_dumps(own_run: Path, capsys: Capture, name: str, words: str) -> None:
    (own_run / name).touch()
    status, line = refusal(capsys, "show", own_run / name)
    assert status == 2
    assert f"{own_run / name} is no dump: it {words}" in line
    assert line.endswith(f"give its folder, {own_run}")


def test_broken_dumps(own_run: Path, capsys: Capture) -> None:
    dumps = sorted(own_run.glob("step=*.h5"))
    dumps[0].write_bytes(b"not HDF5")
    assert main(["show", str(own_run)]) == 0
    printed = capsys.readouterr()
    assert "2 snapshots" in printed.out
    warning = printed.err.splitlines()
    assert len(warning) == 1
    assert warning[0].startswith(f"bif-lightning: warning: skipped {dumps[0]}: ")
    for dump in dumps[1:]:
        dump.write_bytes(b"not HDF5")
    assert refusal(capsys, "show", own_run)[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["shwo"], ["show"], ["top", "x"], ["top", "x", "--query", "1", "--k", "many"], ["show", "x", "-z"]],
)
def test_wrong_arguments(capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage: bif-lightning" in printed.err


def test_help_teaches_and_starts_without_torch() -> None:
    code = (
        "import sys\nfrom bif_lightning.commands.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print('LOADED', sorted({'torch', 'lightning', 'xarray', 'h5py', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout
    assert "bif-lightning top lightning_logs/version_0/bif --query 3" in done.stdout
    assert "negative = more weight on the train example lowers" in done.stdout


def test_reading_starts_without_torch(run: Path) -> None:
    code = (
        "import sys\nfrom bif_lightning.commands.cli import main\nmain(sys.argv[1:])\n"
        "assert not {'torch', 'lightning'} & set(sys.modules), 'slow imports'"
    )
    subprocess.run([sys.executable, "-c", code, "top", str(run), "--query", "1"], check=True, capture_output=True)


def test_a_reader_that_leaves_is_no_error(run: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run([*COMMAND, "show", str(run)], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize("spelling", [["-k", "1"], ["-k1"], ["--k", "1"], ["--k=1"]])
def test_the_number_of_examples_has_a_short_option(run: Path, capsys: Capture, spelling: list[str]) -> None:
    shown = answer(capsys, "top", run, "--query", 1, "--step", 200, *spelling)
    assert [row["train"] for row in shown["examples"]] == [2, 4]


def test_version() -> None:
    """Without torch, which takes seconds to import."""
    code = (
        "import sys\nfrom bif_lightning.commands.cli import main\n"
        "try: main(['--version'])\n"
        "finally: print('LOADED', sorted({'torch', 'lightning', 'xarray', 'h5py', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"bif-lightning {version('bif-lightning')}\nLOADED []\n"


def test_the_shell_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--print_completion", "shtab-bash"])
    printed = capsys.readouterr()
    if version("jsonargparse") < "4.47":  # which has no such option
        assert end.value.code == 2
        return
    assert end.value.code == 0
    assert all(word in printed.out for word in ("show", "attribute", "--dry-run"))


def test_what_does_not_vary_says_so(own_run: Path, capsys: Capture) -> None:
    with h5py.File(own_run / "step=000000200.h5", "r+") as file:
        file["margin_influence"][...] = 0.0
    for command in (["top", "--query", "easy"], ["ranking"]):
        assert main([command[0], str(own_run), *command[1:], "--observable", "margin"]) == 0
        assert "is the same at every draw" in capsys.readouterr().out
