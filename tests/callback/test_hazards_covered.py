"""The twenty ways in which a snapshot can spoil a training, each with the test that would see it."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.trainer

TESTS = Path(__file__).parents[1]

MODULES = "callback/test_modules.py::test_module"
TRAINERS = "callback/test_trainers.py::test_trainer"
RANKS = "trainer/test_strategies.py::"

HAZARDS = {
    1: ("activation checkpointing with the gradient taken outside: wrong, silently", f"{MODULES}[checkpointed]"),
    2: ("functional calls of a sharded module compute with the original weights",
        f"{RANKS}test_a_model_in_shards_has_the_influence_of_the_whole"),
    3: ("parameters of a sharded module stay whole after a forward pass",
        f"{RANKS}test_training_on_several_ranks_is_bitwise_untouched"),
    4: ("noise below the resolution of bfloat16",
        "model/test_weights.py::test_steps_below_the_resolution_of_the_model_are_taken"),
    5: ("self.log pollutes silently", f"{MODULES}[metrics]"),
    6: ("metrics, lists and private generators", f"{TRAINERS}[noisy data]"),
    7: ("iterating over the training loader", f"{TRAINERS}[noisy data, two persistent workers]"),
    8: ("a copy of a compiled module computes with the original", f"{MODULES}[compiled]"),
    9: ("manual optimization steps the real optimizers", f"{MODULES}[optimization by hand]"),
    10: ("contrastive and permuted losses look separable",
         "losses/derived/test_refusals.py::test_refused_with_reason_and_advice"),
    11: ("uneven passes through the wrapper of DDP hang",
        f"{RANKS}test_the_dump_is_bitwise_the_same_on_any_number_of_ranks"),
    12: ("one rank fails",
        f"{RANKS}test_where_one_rank_fails_all_skip_together"),
    13: ("collectives in the training step",
        f"{RANKS}test_collectives_in_a_training_step_are_named"),
    14: ("BatchNorm buffers differ between ranks",
        f"{RANKS}test_running_statistics_are_those_of_rank_0"),
    15: ("steps repeat under accumulation and are skipped by several optimizers",
         "callback/test_triggers.py::test_several_optimizers_cross_steps"),
    16: ("triggers that wait for the clock", "trainer/test_schedule.py::test_what_waits_for_the_clock_is_named"),
    17: ("isolate_rng does not restore after an exception",
         "callback/test_faults.py::test_a_failure_at_each_point_leaves_no_trace"),
    18: ("averaged weights are swapped in", f"{TRAINERS}[weights averaged first]"),
    19: ("autocast caches weights", f"{TRAINERS}[bf16-mixed]"),
    20: ("generators of CUDA, cuDNN, NCCL, SyncBatchNorm", ""),
}  # fmt: skip
UNTESTED = {20}
"""They need a GPU."""


def test_every_hazard_has_a_test() -> None:
    assert sorted(HAZARDS) == list(range(1, 21))
    missing = {number: place for number, (_, place) in HAZARDS.items() if number not in UNTESTED and not exists(place)}
    assert missing == {}


def exists(place: str) -> bool:
    """Whether a test of this name is there, and its parameter is written in the file."""
    path, _, name = place.partition("::")
    function, _, parameter = name.partition("[")
    source = TESTS / path
    if not source.exists():
        return False
    text = source.read_text()
    names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    return function in names and (not parameter or f'"{parameter.removesuffix("]")}"' in text)
