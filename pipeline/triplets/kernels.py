"""How kernels run: compiled by numba, without the GIL, each product on the thread that asks for it."""

import functools
import threading
from typing import Any

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  numba's np.dot calls it: loaded here, so that it is limited too
from threadpoolctl import ThreadpoolController

TILE = (512, 512)  # anchors x columns of one matrix product: only speed

compiled = numba.njit(nogil=True, cache=True)


@functools.cache
def _blas() -> Any:
    return ThreadpoolController().select(user_api="blas")


def one_blas_thread() -> Any:
    """A context in which a matrix product stays on the thread that asks for it."""
    return _blas().limit(limits=1)


_buffers = threading.local()


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right.T in a buffer that the thread's next product overwrites: fresh pages cost a tenth of the scan."""
    size = len(left) * len(right)
    if not hasattr(_buffers, "scores") or _buffers.scores.size < size:
        _buffers.scores = np.empty(size, np.float32)
    return np.dot(left, right.T, out=_buffers.scores[:size].reshape(len(left), len(right)))
