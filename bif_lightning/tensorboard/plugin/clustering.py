"""Order rows so that those that act alike are neighbours, by average linkage.

Rows are compared by the cosine of their leading coordinates: those on the 16 strongest singular directions of the
matrix, which carry what rows share, while the rest is mostly Monte Carlo noise. SciPy clusters them by average linkage
(UPGMA) and orders the leaves so that neighbours are close (Bar-Joseph, Gifford & Jaakkola 2001). Of more than 512 rows,
512 that lie far apart are clustered, and each other row stands with the nearest of these.
"""

import numpy as np
from jaxtyping import Float, Int

_DIRECTIONS = 16
_MOST = 512


def cluster_order(matrix: Float[np.ndarray, "row column"]) -> Int[np.ndarray, " row"]:
    """Positions of the rows in an order in which rows that act alike are neighbours; deterministic.

    >>> cluster_order(np.array([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]])).tolist()
    [1, 3, 2, 0]
    """
    if len(matrix) < 3:
        return np.arange(len(matrix))
    points = _coordinates(matrix)
    centres, nearest = _representatives(points)
    rank = np.argsort(_leaves(points[centres]))
    closeness = (points * points[centres[nearest]]).sum(axis=1)
    return np.lexsort((-closeness, rank[nearest]))


def _coordinates(matrix: np.ndarray) -> np.ndarray:
    """Unit vectors along the leading singular directions; a row without any stays zero."""
    values = np.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
    values = values / (np.abs(values).max() or 1.0)
    directions = min(_DIRECTIONS, *values.shape)
    # One power iteration on a fixed start finds what stands above the noise (Halko, Martinsson & Tropp 2011).
    start = np.random.default_rng(0).standard_normal((values.shape[1], min(2 * directions, *values.shape)), np.float32)
    basis, _ = np.linalg.qr(values @ (values.T @ (values @ start)))
    left, sizes, _ = np.linalg.svd(basis.T @ values, full_matrices=False)
    points = (basis @ left[:, :directions]) * sizes[:directions]
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def _representatives(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Up to 512 rows, each as far as can be from those before it; and which of them every row is nearest to."""
    if len(points) <= _MOST:
        return np.arange(len(points)), np.arange(len(points))
    chosen = [0]
    nearest, similarity = np.zeros(len(points), np.int64), points @ points[0]
    similarity[0] = np.inf
    while len(chosen) < _MOST:
        farthest = int(np.argmin(similarity))
        other = points @ points[farthest]
        closer = other > similarity
        nearest[closer], similarity[closer] = len(chosen), other[closer]
        # Chosen for good: of rows that are all alike, each stands for itself.
        nearest[farthest], similarity[farthest] = len(chosen), np.inf
        chosen.append(farthest)
    return np.array(chosen), nearest


def _leaves(points: np.ndarray) -> np.ndarray:
    """Leaves of the average-linkage tree of unit vectors, from left to right."""
    # Imported here: it takes longer than a picture of a step, and most readers never cluster.
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering

    above = np.triu_indices(len(points), 1)
    distances = np.clip(1 - points @ points.T, 0, None)[above].astype(np.float64)
    return leaves_list(optimal_leaf_ordering(linkage(distances, "average"), distances))
