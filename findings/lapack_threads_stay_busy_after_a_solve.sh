#!/bin/sh
# jax 0.10.1 on CPU: a thread goes on working after a triangular solve is done, on a core that the
# next operations of XLA need.
#
# jax.scipy.linalg.solve_triangular, jnp.linalg.inv, eigh and svd call the LAPACK that scipy brings,
# which is OpenBLAS. That wakes its threads even for a matrix of 96x96, which takes one of them 0.4 ms;
# afterwards they wait for more work without sleeping. (A Cholesky decomposition of this size wakes
# none.) In a training step on two cores (six convolutions, 150 ms) one such solve made everything
# else a quarter slower; OPENBLAS_NUM_THREADS=1 took that away, and so did an inverse root by matrix
# products instead.
#
# Seen: jax 0.10.1 with jaxlib 0.10.1 and scipy 1.17.1 on Linux x86_64, two cores. Needs python3 from
# 3.11 to 3.13, and two cores or more. It sleeps for 20 ms after each call, when nothing is left to
# do, and prints the processor time that the process takes meanwhile. Output, but for the digits:
#   threads of OpenBLAS by default: 20.1 ms of processor time in 20 ms of sleep
#   one thread of OpenBLAS: 0.1 ms of processor time in 20 ms of sleep
# Exits with 1 if this is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.1 jaxlib==0.10.1 scipy==1.17.1
cat > "$folder/sleep.py" <<'PYTHON'
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

jax.config.update("jax_platforms", "cpu")
identity = jnp.eye(96)
matrix = jnp.tril(jnp.ones((96, 96))) + 96 * identity
solve = jax.jit(lambda matrix: solve_triangular(matrix, identity, lower=True))
solve(matrix).block_until_ready()
taken = []
for _ in range(20):
    time.sleep(0.2)  # until all threads sleep
    solve(matrix).block_until_ready()
    before = time.process_time()
    time.sleep(0.02)
    taken.append(1000 * (time.process_time() - before))
found = statistics.median(taken)
print(f"{sys.argv[1]}: {found:.1f} ms of processor time in 20 ms of sleep")
raise SystemExit((found > 5) != (sys.argv[2] == "busy"))
PYTHON
"$folder/venv/bin/python" "$folder/sleep.py" "threads of OpenBLAS by default" busy
OPENBLAS_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/sleep.py" "one thread of OpenBLAS" idle
