"""Why the losses of single examples cannot be had."""


class LossRefusedError(ValueError):
    """The losses of single examples cannot be derived, or a `loss_fn` does not give them.

    The message says what was tried, and what to pass instead.
    """
