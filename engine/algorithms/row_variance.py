"""The variance of each row over its principal components, as LIFT's variety curation scores it.

"LIFT" (Xu et al., arXiv 2312.11508): vectors are centred and projected on the leading eigenvectors of their covariance;
a row's score is the variance of its own features. With centred features that is close to |z|^2 / p: outliers score
high.

Nothing depends on the order or the sharing of the rows. A float16 is a whole number of 2^-24: it is cut into a high
part of 2^-12 and a low part, so that every sum of products of up to 2^29 unit vectors is exact in a float64, and so is
every projection on components that are cut at 2^-21 and 2^-42. Only the eigenvectors round, once, for all rows alike.
The file knows nothing of shards or files.
"""

# Shape letters: N rows, D dimensions, P components, T rows of one tile.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.algorithms.exact import check_units, float64_tiles

HIGH = 1 << 12  # the high part of a component of a vector is a whole number of 2^-12


@dataclass(frozen=True)
class Moments:
    """Exact sums over rows.

    Attributes:
        count: rows.
        sum_D: of the vectors.
        high_DD, mixed_DD, low_DD: of products of high parts, of high by low parts, and of low parts.
    """

    count: int
    sum_D: np.ndarray
    high_DD: np.ndarray
    mixed_DD: np.ndarray
    low_DD: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.sum_D + other.sum_D,
            self.high_DD + other.high_DD,
            self.mixed_DD + other.mixed_DD,
            self.low_DD + other.low_DD,
        )

    def covariance(self) -> np.ndarray:
        """(D, D) float64, of the population (divided by the count)."""
        second_DD = self.high_DD + (self.mixed_DD + self.mixed_DD.T) + self.low_DD
        mean_D = self.sum_D / self.count
        return second_DD / self.count - np.outer(mean_D, mean_D)


def moments(x_ND: np.ndarray) -> Moments:
    """Exact first and second moments of (N, D) float16 vectors of norm 1, N up to 2^29.

    Raises:
        DataError: as `check_units`.
    """
    import torch

    check_units(x_ND)
    dims = x_ND.shape[1]
    total = torch.zeros(dims, dtype=torch.float64)
    high, mixed, low = (torch.zeros((dims, dims), dtype=torch.float64) for _ in range(3))
    for _, _, tile_TD in float64_tiles(x_ND):
        high_TD = (tile_TD * HIGH).round_() / HIGH
        low_TD = tile_TD - high_TD
        total += tile_TD.sum(dim=0)
        high.addmm_(high_TD.T, high_TD)
        mixed.addmm_(high_TD.T, low_TD)
        low.addmm_(low_TD.T, low_TD)
    return Moments(len(x_ND), total.numpy(), high.numpy(), mixed.numpy(), low.numpy())


@dataclass(frozen=True)
class Components:
    """Leading eigenvectors, cut in two parts, and where the mean lies along them.

    Attributes:
        high_DP, low_DP: whole numbers of 2^-21 and 2^-42; their sum is the eigenvectors.
        offset_P: the mean's projection.
    """

    high_DP: np.ndarray
    low_DP: np.ndarray
    offset_P: np.ndarray


def components(found: Moments, num: int) -> Components:
    """The `num` leading eigenvectors of the covariance, or as many as there are dimensions.

    Each has the sign that makes its largest component by size positive, as scikit-learn's PCA has it: a row's variance
    changes when the sign of one of its features does.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the eigenvectors round differently with another number
    _, vectors_DD = torch.linalg.eigh(torch.from_numpy(found.covariance()))
    torch.set_num_threads(threads)
    leading_DP = vectors_DD.numpy()[:, ::-1][:, : min(num, len(found.sum_D))]
    at_P = np.abs(leading_DP).argmax(axis=0)
    leading_DP = leading_DP * np.sign(leading_DP[at_P, np.arange(len(at_P))])
    high_DP = np.rint(leading_DP * 2.0**21) / 2.0**21
    low_DP = np.rint((leading_DP - high_DP) * 2.0**42) / 2.0**42
    offset_P = np.einsum("d,dp->p", found.sum_D / found.count, high_DP + low_DP)
    return Components(high_DP, low_DP, offset_P)


def row_variance(x_ND: np.ndarray, axes: Components) -> np.ndarray:
    """(N,) float64: the population variance of each row's centred features over the components."""
    import torch

    high_DP, low_DP = (torch.from_numpy(np.ascontiguousarray(part)) for part in (axes.high_DP, axes.low_DP))
    result_N = np.empty(len(x_ND))
    for start, stop, tile_TD in float64_tiles(x_ND):
        features_TP = (tile_TD @ high_DP).numpy() + (tile_TD @ low_DP).numpy() - axes.offset_P
        result_N[start:stop] = features_TP.var(axis=1)
    return result_N
