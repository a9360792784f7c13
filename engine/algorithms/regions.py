"""Regions of SelectLLM (Parkar et al., arXiv 2401.16553): small mixed groups of rows, one from every cluster.

As published: K-Means with as many clusters as a region has rows; region after region takes, centre after centre, the
nearest row that no region has. The file knows nothing of vectors or of who chooses from a region.
"""

# Shape letters: R regions, K clusters, M rows nearest to a centre.

from __future__ import annotations

import numpy as np


def fill_regions(nearest_KM: np.ndarray, num_regions: int) -> np.ndarray:
    """Rows of each region.

    Args:
        nearest_KM: (K, M) int64 distinct row numbers from 0, the nearest to each centre first; M >= num_regions * K.
        num_regions: R.

    Returns:
        (R, K) int64, the k-th of a region being that of centre k; every row at most once.
    """
    num_clusters = len(nearest_KM)
    taken = np.zeros(int(nearest_KM.max(initial=-1)) + 1, dtype=bool)
    at_K = [0] * num_clusters
    regions_RK = np.empty((num_regions, num_clusters), dtype=np.int64)
    for region_K in regions_RK:
        for k in range(num_clusters):
            while taken[nearest_KM[k, at_K[k]]]:
                at_K[k] += 1
            region_K[k] = nearest_KM[k, at_K[k]]
            taken[region_K[k]] = True
    return regions_RK


def shares(num: int, num_regions: int) -> np.ndarray:
    """(R,) int64 rows that each region gives, `num` together; the first regions give one more."""
    return num // num_regions + (np.arange(num_regions) < num % num_regions)
