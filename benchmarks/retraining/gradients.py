"""Attribution by gradients at the reference checkpoint: dot products, TRAK, and damped influence functions, exactly."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from retraining.tasks import Task, half_square, stack

Solve = Callable[[float], Tensor]
"""Influence, [n, q], for a value of a method's knob."""

LEAST = 1e-4
LARGEST_DENSE = 25_000


def dot(task: Task, model: nn.Module) -> Solve:
    """−⟨∇l_i, ∇l_j⟩: one step of gradient descent on example i."""
    train, query = gradients(task, model)
    return lambda _: -train @ query.mT


def cosine(task: Task, model: nn.Module) -> Solve:
    """The same of normalized gradients."""
    train, query = (nn.functional.normalize(part, dim=1) for part in gradients(task, model))
    return lambda _: -train @ query.mT


def trak(task: Task, model: nn.Module) -> Solve:
    """TRAK with one checkpoint (Park et al. 2023, Sec. 3), random projections to k dimensions.

    −φ_j(ΦᵀΦ)⁻¹φ_i·Q_i, φ the projected gradient of the margin log(p/(1−p)), or of the output itself where the loss is
    a square, Q_i = −dl_i/dmargin. Of the query only a sign and a scale differ from its loss; the sign is kept.
    """
    (train, train_slopes), (query, query_slopes) = (_margin_gradients(task, model, part) for part in task.data())

    def solve(size: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        left, right = torch.zeros(len(train), int(size)), torch.zeros(len(query), int(size))
        for start in range(0, train.shape[1], 4096):
            part = slice(start, start + 4096)
            projection = torch.randn(train[:, part].shape[1], int(size), generator=generator)
            left += train[:, part] @ projection
            right += query[:, part] @ projection
        exact = left.double()
        # Projections to more dimensions than there are weights or examples leave a null space, up to rounding.
        inverse = torch.linalg.pinv(exact.mT @ exact, rtol=1e-10, hermitian=True).float()
        return -train_slopes[:, None] * (left @ inverse @ right.mT) * query_slopes.sign()

    return solve


def empirical_fisher(task: Task, model: nn.Module) -> Solve:
    """−∇l_iᵀ(F + λI)⁻¹∇l_j, F = mean of ∇l ∇lᵀ over the train set; exact, by way of its n x n Gram matrix."""
    train, query = gradients(task, model)
    return _damped(train, train, query)


def gauss_newton(task: Task, model: nn.Module) -> Solve:
    """−∇l_iᵀ(G + λI)⁻¹∇l_j, G the Gauss-Newton matrix of the mean loss over the train set.

    Rows of its root whose sum of squares is under a hundredth of the least λ in use are left out.

    Raises:
        NotImplementedError: there are too many weights.
    """
    weights = sum(p.numel() for p in model.parameters())
    if weights > LARGEST_DENSE:
        raise NotImplementedError(f"{weights} weights are too many for it, above {LARGEST_DENSE}")
    train, query = gradients(task, model)
    return _damped(_roots(task, model), train, query)


def gradients(task: Task, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Gradient of every example's loss, [n, weights] and [q, weights]."""

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return task.losses(Called(model, weights), (x[None], y[None])).sum()

    train, query = (_per_example(grad(loss), model, part) for part in task.data())
    return train, query


def effective_damping(curvatures: Tensor, wanted: float) -> float:
    """λ for which Σ h/(h + λ) over these eigenvalues is `wanted`, or as near as they get."""
    low, high = 1e-12, float(curvatures.sum()) / wanted
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float((curvatures / (curvatures + middle)).sum()) > wanted else (low, middle)
    return high


class Called(nn.Module):
    """A module with other weights."""

    def __init__(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.call = lambda inputs: functional_call(module, weights, (inputs,))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.call(inputs)


def _per_example(
    function: Callable[[dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]],
    model: nn.Module,
    examples: list[tuple[Tensor, Tensor]],
    keep: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    """Rows of a function's result over examples, its parameters side by side, [rows, weights]."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    inputs, targets = stack(examples)
    rows = list[Tensor]()
    with sdpa_kernel(SDPBackend.MATH):
        for x, y in zip(inputs.split(50), targets.split(50), strict=True):
            found = vmap(function, in_dims=(None, 0, 0))(weights, x, y)
            leading = next(iter(found.values())).ndim - next(iter(weights.values())).ndim
            rows.append(keep(torch.cat([found[name].flatten(leading) for name in weights], -1).flatten(0, -2)))
    return torch.cat(rows)


def _margin_gradients(task: Task, model: nn.Module, examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Gradients of the margins (summed over tokens), [m, weights], and −dl/dmargin (mean over tokens), [m]."""

    def margin(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return _margins(task, functional_call(model, weights, (x[None],)), y[None]).sum()

    inputs, targets = stack(examples)
    with torch.no_grad():
        outputs = model(inputs)
        if task.loss is half_square:
            slopes = targets - outputs.squeeze(-1)
        else:
            slopes = -torch.expm1(-task.loss(outputs, targets))
    return _per_example(grad(margin), model, examples), slopes.reshape(len(examples), -1).mean(1)


def _margins(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    if task.loss is half_square:
        return outputs.squeeze(-1)
    own = outputs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    others = outputs.scatter(-1, targets.unsqueeze(-1), -torch.inf).logsumexp(-1)
    return own - others


def _roots(task: Task, model: nn.Module) -> Tensor:
    """Rows A with AᵀA/n = G: of the square loss ∇f, of cross-entropy ∇ √p_c·(z_c − Σ p·z), p held."""
    count = len(task.data()[0])

    def scaled(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(model, weights, (x[None],)).flatten()
        if task.loss is half_square:
            return outputs
        p = outputs.detach().softmax(-1)
        return p.sqrt() * (outputs - (p * outputs).sum())

    def kept(rows: Tensor) -> Tensor:
        per_example = len(rows) / min(50, count)
        return rows[rows.square().sum(1) > 0.01 * LEAST / per_example]

    return _per_example(jacrev(scaled), model, task.data()[0], kept)


def _damped(roots: Tensor, train: Tensor, query: Tensor) -> Solve:
    """−g_iᵀ(AᵀA/n + λI)⁻¹g_j = −(g_i·g_j − g_iAᵀ(AAᵀ + nλI)⁻¹Ag_j)/λ; λ 0 stands for d_eff(λ) = n/10."""
    count = len(train)
    gram = (roots @ roots.mT).double()
    plain = (train @ query.mT).double()
    left, right = ((roots @ part.mT).double() for part in (train, query))

    def solve(damping: float) -> Tensor:
        if damping == 0:
            curvatures = torch.linalg.eigvalsh(gram).clamp(min=0) / count
            damping = effective_damping(curvatures, count / 10)
        shifted = gram.clone()
        shifted.diagonal().add_(count * damping)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(shifted))
        return -(plain - left.mT @ solved) / damping

    return solve
