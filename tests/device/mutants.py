"""Plant device bugs in the package, and see the tests notice: python tests/device/mutants.py [words of a name ...]

As `tests/mutants.py`, whose functions these are. Each mutant breaks the discipline of devices in one line: it passes on
a CPU, and would fail, or be slow, on a GPU. The simulated accelerator has to notice it.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any


def _engine() -> Any:
    """The script of the other mutants, as a module that the processes of its pool find, too."""
    spec = importlib.util.spec_from_file_location("mutants", Path(__file__).resolve().parents[1] / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    return module


engine = sys.modules.get("mutants") or _engine()
ROOT, mutated = engine.ROOT, engine.mutated


def estimate(case: str) -> tuple[str, ...]:
    return (f"device/test_estimates.py::test_an_estimate_is_that_of_the_cpu[{case}]",)


def rounded(case: str) -> tuple[str, ...]:
    return (f"device/test_estimates.py::test_an_estimate_by_other_kernels_differs_by_rounding[{case}]",)


def training(case: str) -> tuple[str, ...]:
    return (f"device/test_training.py::test_training_is_bitwise_untouched[{case}]",)


RANKS = ("device/test_ranks.py::test_two_devices_give_the_same_bits_as_one[simccl]",)
SECOND = ("device/test_estimates.py::test_the_second_device_is_as_good_as_the_first[random in evaluation]",)
KEPT = ("device/test_estimates.py::test_global_generators_of_the_device_decide_nothing_and_stay[SGLD]",)
STEP = ("device/test_estimates.py::test_a_step_waits_for_the_copies_of_its_minibatch_alone[SGLD-2]",)

MUTANTS = [
    engine.mutant(
        "a chain's noise by a generator of the host",
        "rng.py",
        ("torch.Generator(device=device), choices", "torch.Generator(), choices"),
        tests=estimate("SGLD"),
    ),
    engine.mutant(
        "a random direction by a generator of the host",
        "curvature/spectrum.py",
        ("torch.Generator(backend.device).manual_seed(key)", "torch.Generator().manual_seed(key)"),
        tests=estimate("SGLD"),
    ),
    engine.mutant(
        "second derivatives are compared with a generator of the host",  # so that the comparison fails, and is left out
        "curvature/second_derivatives.py",
        ("torch.Generator(self.leaves[0].device)", "torch.Generator()"),
        tests=estimate("Subspace, a fused loss"),
    ),
    engine.mutant(
        "the generator of the first device is seeded, whichever is used",
        "rng.py",
        ("default_generators[device.index or 0]", "default_generators[0]"),
        tests=SECOND,
    ),
    engine.mutant(
        "the generator of the device is not put back",
        "rng.py",
        ("        if on_device is not None:\n", "        if False:\n"),
        tests=KEPT,
    ),
    engine.mutant(
        "weights on the host",
        "model/functional.py",
        ("dtype=self.layout.dtype, device=self.device)", "dtype=self.layout.dtype)"),
        tests=estimate("SGLD"),
    ),
    engine.mutant(
        "batches on the host", "data/dataset.py", ("return batch.to(device)", "return batch"), tests=estimate("SGLD")
    ),
    engine.mutant(
        "batches of a Trainer on the host",
        "trainer/problem.py",
        ("after(transfer(before(convert(batch), 0), device, 0), 0)", "after(before(convert(batch), 0), 0)"),
        tests=training("a derived loss"),
    ),
    engine.mutant(
        "rows of the host choose from data of the device",
        "data/dataset.py",
        ("indices.to(batch.device)", "indices"),
        tests=estimate("data on the device"),
    ),
    engine.mutant(
        "gradients of examples on the host",
        "curvature/gradients.py",
        ("dtype=backend.center.dtype, device=backend.device)", "dtype=backend.center.dtype)"),
        tests=estimate("Subspace"),
    ),
    engine.mutant(
        "sums of the metric on the host",
        "curvature/kronecker.py",
        ("dtype=torch.float64, device=arrays.device)", "dtype=torch.float64)"),
        tests=estimate("Subspace"),
    ),
    engine.mutant(
        "a Gram matrix on the host",
        "curvature/gaussian.py",
        ("dtype=torch.float64, device=rows.device)", "dtype=torch.float64)"),
        tests=estimate("Subspace"),
    ),
    engine.mutant(
        "probes of the curvature on the host",
        "curvature/subsample.py",
        ("probes = mixed.to(directions) @ directions", "probes = mixed @ directions"),
        tests=estimate("Subspace"),
    ),
    engine.mutant(
        "the curvature stays on the host",
        "curvature/subsample.py",
        ("return torch.stack(ordered).to(directions.device)", "return torch.stack(ordered)"),
        tests=estimate("Subspace"),
    ),
    engine.mutant(
        "the curvature travels as a tensor of the device",
        "curvature/subsample.py",
        ("[each.cpu() for each in map_threads(", "[each for each in map_threads("),
        tests=RANKS,
    ),
    engine.mutant(
        "buffers of the first rank stay on the host",
        "sampling/preflight.py",
        ("[there.to(here.device) for there, here", "[there for there, here"),
        tests=RANKS,
    ),
    engine.mutant(
        "losses of a draw stay on the device",
        "sampling/trace.py",
        ("self.train.append(train.cpu())", "self.train.append(train)"),
        tests=estimate("SGLD"),
    ),
    engine.mutant(
        "columns of a draw stay on the device",
        "sampling/trace.py",
        ("self.columns.append(columns.cpu())", "self.columns.append(columns)"),
        tests=estimate("Pairs"),
    ),
    engine.mutant(
        "the control stays on the device",
        "sampling/prior_control.py",
        ("(draw, train.cpu(), columns[scored].cpu())", "(draw, train, columns[scored])"),
        tests=estimate("SGLD, traces and a control"),
    ),
    engine.mutant(
        "covariances in closed form stay on the device",
        "curvature/closed_form.py",
        ("(train @ self.columns.mT).double().cpu() * pull", "(train @ self.columns.mT).double() * pull"),
        tests=estimate("Subspace"),
    ),
    engine.mutant(
        "a mask of the device for a tensor of the host",
        "curvature/closed_form.py",
        ("cut = (normal.curvature == 0).cpu()", "cut = normal.curvature == 0"),
        tests=estimate("Subspace"),
    ),
    engine.mutant(
        "groups of queries on the host",
        "losses/observables.py",
        ("for group in self.groups], device=values.device)", "for group in self.groups])"),
        tests=estimate("observables"),
    ),
    engine.mutant(
        "an array of losses that lie on the device",
        "sampling/token_trace.py",
        ("(here.values - side.values).cpu().numpy()", "(here.values - side.values).numpy()"),
        tests=rounded("tokens"),
    ),
    engine.mutant(
        "slopes of tokens stay on the device",
        "curvature/token_slopes.py",
        ("else kept.float()).cpu())", "else kept.float()))"),
        tests=rounded("tokens in closed form"),
    ),
    engine.mutant(
        "a step asks for a number of its gradient",
        "sampling/sgld.py",
        ("return self.scale <= 1 or math.isfinite(", "return math.isfinite("),
        tests=STEP,
    ),
    engine.mutant(
        "a step computes in float64",
        "sampling/kernel.py",
        (
            "loss_gradient.mul_(sampler.inverse_temperature)",
            "loss_gradient.copy_(loss_gradient.double() * sampler.inverse_temperature)",
        ),
        tests=STEP,
    ),
    engine.mutant(
        "weights of a trial loss on the host",
        "losses/derived/user_loss.py",
        ("torch.linspace(1, 2, losses.numel()).to(losses)", "torch.linspace(1, 2, losses.numel())"),
        tests=training("a given loss"),
    ),
    engine.mutant(
        "places in a hash on the host",
        "trainer/guard/fingerprint.py",
        ("device=chunk.device, dtype=torch.int64", "dtype=torch.int64"),
        tests=training("dumps at all steps"),
    ),
]


if __name__ == "__main__":
    sys.exit(engine.main(sys.argv[1:], MUTANTS))
