"""One chain: from the snapshot to its draws, after burn-in and thinning, or to the draw at which it diverged."""

from collections.abc import Iterator

from bif_lightning.model.devices import raise_unrelated
from bif_lightning.results.estimate import Divergence
from bif_lightning.sampling.divergence import left_posterior
from bif_lightning.sampling.sampler import ChainContext, ChainState, Draw
from bif_lightning.sampling.trace import ChainTrace, batch_lengths


def draws(state: ChainState) -> Iterator[Draw]:
    """Walk the chain; yield a draw after burn-in, every `thinning` steps."""
    context = state.context
    chains, kernel = context.chains, context.kernel
    for step in range(1, chains.num_steps + 1):
        state.steps = step
        kernel.draw(state, step - 1)
        context.tick()
        past = step - chains.burn_in
        if past > 0 and past % chains.thinning == 0:
            yield state.measure(past // chains.thinning - 1, step)


def run_chain(context: ChainContext, chain: int) -> ChainTrace | Divergence:
    """Run one chain to its end, or to the draw at which it left the posterior."""
    kernel, settings = context.kernel, context.settings
    state = kernel.start(context, chain)
    trace = ChainTrace(chain, batch_lengths(context.chains, paired=settings.paired), context.traces)
    before = context.loss
    try:
        for draw in draws(state):
            distance, weights = kernel.squared_distance(state), context.backend.layout.num_weights
            why = left_posterior(draw.train, draw.columns, distance, context.loss, weights, settings)
            if why:
                return _divergence(context, chain, draw.index, draw.step, before, draw.loss, why)
            before = draw.loss
            trace.push(draw.train, draw.columns)
            if context.tokens is not None and draw.tokens is not None:
                context.tokens.push(chain, draw.index, *draw.tokens)
            if draw.coordinates is not None:
                trace.coordinates.append(draw.coordinates)
            trace.loss.append(before)
            trace.distance.append(draw.squared_distance**0.5)
    except Exception as error:
        raise_unrelated(error)
        # Shards of a model fail together or not at all: whether one is finite says nothing of the others.
        if context.backend.sharded or bool(state.weights.flat.isfinite().all()):
            raise
        why = "the weights are no longer finite and the model refused them"
        past = state.steps - context.chains.burn_in
        index = (past - 1) // context.chains.thinning if past > 0 else -1
        return _divergence(context, chain, index, state.steps, before, float("nan"), why)
    trace.seal()
    return trace


def trace_at_snapshot(context: ChainContext) -> ChainTrace:
    """A trace whose draws are all w*, for a closed form of which no chain is left: it needs mean losses alone."""
    chains = context.chains
    trace = ChainTrace(0, batch_lengths(chains, paired=context.settings.paired), context.traces)
    draw = ChainState(context, 0).measure(0, 0)
    for _ in range(chains.num_draws):
        trace.push(draw.train, draw.columns)
        trace.loss.append(draw.loss)
        trace.distance.append(0.0)
    trace.seal()
    return trace


def _divergence(
    context: ChainContext, chain: int, draw: int, step: int, before: float, loss: float, why: str
) -> Divergence:
    message = (
        f"chain {chain} diverged at draw {draw} of {context.chains.num_draws} (step {step}): loss {before:.4g} -> "
        f"{loss:.4g}; {why}; {context.kernel.sampler.remedy()}"
    )
    return Divergence(chain=chain, draw=draw, step=step, loss_before=before, loss=loss, message=message)
