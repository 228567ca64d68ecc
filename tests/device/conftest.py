"""A process with the simulated accelerator, for the tests of one worker."""

from simulated_device.fixtures import built, sim

__all__ = ["built", "sim"]
