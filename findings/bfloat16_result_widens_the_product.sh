#!/bin/sh
# jax 0.10.1 on CPU: the type of the result decides how a product of bfloat16 matrices is computed.
#
#   float32 result:  the product takes the bfloat16 operands (XLA hands it to its library YNN, which
#                    uses AVX512-BF16 or AMX where the processor has them)
#   bfloat16 result: both operands are converted to float32 first, then multiplied in float32, and
#                    the result is rounded: the units for bfloat16 are never used
#
# So the natural call, jnp.matmul(a, b) of two bfloat16 arrays, is the slow one. On a processor with
# AMX, a [73728, 216] times [216, 24] took 39 ms; with preferred_element_type=jnp.float32 it took 3 to
# 6 ms. Rounding the float32 result afterwards, behind a barrier, keeps the fast product.
# jax 0.12.0.1 takes the bfloat16 operands in both cases.
#
# Seen: jax 0.10.1 with jaxlib 0.10.1 on Linux x86_64. Needs python3 from 3.11 to 3.13. Output:
#   float32 result: the product takes bf16 operands
#   bfloat16 result: the product takes f32 operands
# Exits with 1 if this is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.1 jaxlib==0.10.1
cat > "$folder/products.py" <<'PYTHON'
import re

import jax
import jax.numpy as jnp

jax.config.update("jax_platforms", "cpu")
a = jax.ShapeDtypeStruct((4096, 432), jnp.bfloat16)
b = jax.ShapeDtypeStruct((432, 48), jnp.bfloat16)
for name, operands in (("float32", "bf16"), ("bfloat16", "f32")):
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.dtype(name)))
    text = product.lower(a, b).compile().as_text()
    (left, right) = re.search(r" dot\(%?([\w.]+), %?([\w.]+)\)", text).groups()
    found = {re.search(rf"{re.escape(side)} = (\w+)\[", text)[1] for side in (left, right)}
    print(f"{name} result: the product takes {' and '.join(sorted(found))} operands")
    if found != {operands}:
        raise SystemExit(f"expected {operands}")
PYTHON
"$folder/venv/bin/python" "$folder/products.py"
