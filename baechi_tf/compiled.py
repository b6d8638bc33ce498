"""The one way this package compiles an inner loop to machine code.

Placing and simulating walk a graph op by op, in an order that depends on what
has happened so far: work that NumPy cannot express and that Python does a
hundred times slower than the machine can. The machine code is cached beside
the source (or where `NUMBA_CACHE_DIR` says), so only the first run compiles.
"""

import numba

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
