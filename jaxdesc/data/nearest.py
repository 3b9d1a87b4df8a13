"""Descriptors that are each other's nearest."""

import numpy as np

from jaxdesc.errors import UserError

BLOCK_BYTES = 64 * 2**20  # of similarities that are held at a time


def mutual_nearest(descriptors1: np.ndarray, descriptors2: np.ndarray, block_bytes: int = BLOCK_BYTES) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i, j) whose dot product is the highest of row i and of column j; of equal ones the first of a row, and of these the first row, counts.

    Rows are worked through in blocks of at most `block_bytes` of float32 products, which bounds the memory for any number of keypoints.

    Args:
      descriptors1: (N1, D); descriptors2: (N2, D), any float type.
    Returns:
      (M, 2) int indices with rising i, and (M,) float32 products.
    Raises:
      UserError: descriptors of different lengths.
    """
    n1, n2 = len(descriptors1), len(descriptors2)
    if not (n1 and n2):
        return np.zeros((0, 2), int), np.zeros(0, np.float32)
    if descriptors1.shape[1] != descriptors2.shape[1]:
        raise UserError(f"Descriptors of {descriptors1.shape[1]} and of {descriptors2.shape[1]} numbers cannot be matched: they come from different methods.")
    a, b = (np.asarray(d, np.float32) for d in (descriptors1, descriptors2))
    best2, score, highest = np.zeros(n1, int), np.zeros(n1, np.float32), np.full(n2, -np.inf, np.float32)
    rows = max(1, block_bytes // (4 * n2))
    for start in range(0, n1, rows):
        products = a[start : start + rows] @ b.T
        columns = products.argmax(1)
        best2[start : start + rows], score[start : start + rows] = columns, products[np.arange(len(products)), columns]
        np.maximum(highest, products.max(0), out=highest)  # argmax along columns takes NumPy 25 times as long
    i = np.nonzero(score == highest[best2])[0]
    i = i[np.sort(np.unique(best2[i], return_index=True)[1])]
    return np.column_stack([i, best2[i]]), score[i]
