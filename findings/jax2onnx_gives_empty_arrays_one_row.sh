#!/bin/sh
# jax2onnx 0.17.1: an array that is broadcast to a shape with a 0 in it has a 1 there in ONNX.
#
# The conversion itself reports nothing. Where the empty array is joined to another one, the answer has
# a row too many. jnp.pad(x, widths, mode="edge") does just that on each axis whose width is 0: it joins
# an empty broadcast of the border. So an image batch [n, height, width, channels] that is padded on
# height and width alone becomes two images more and two channels more. With a batch of a fixed size
# onnxruntime refuses the file when it opens it; with a symbolic batch it runs. The modes "reflect",
# "symmetric", "wrap" and "constant" are converted right, and "edge" where all widths are above 0.
#
# Seen: jax2onnx 0.17.1 with jax 0.10.1, onnx 1.23.2 and onnxruntime 1.32.0 on Linux x86_64. Needs
# python3 from 3.11 to 3.13. Output:
#   an empty broadcast, joined: (2, 3) in JAX, (3, 3) in ONNX
#   pad height and width, edge: (2, 7, 8, 1) in JAX, (4, 7, 8, 3) in ONNX
#   pad height and width, reflect: (2, 7, 8, 1) in JAX, (2, 7, 8, 1) in ONNX
# Exits with 1 if this is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install --quiet --disable-pip-version-check"
$pip jax==0.10.1 jaxlib==0.10.1 flax==0.12.8 numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 sympy==1.14.0
$pip --no-deps jax2onnx==0.17.1 onnx-ir==1.1.0  # it asks for an Orbax, which this does not use
cat > "$folder/convert.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import jax2onnx
import numpy as np
import onnxruntime


def joined(x):
    return jnp.concatenate([jnp.broadcast_to(x[:1], (0, 3)), x])


def padded(mode):
    return lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)


cases = {
    "an empty broadcast, joined": (joined, (2, 3), (3, 3)),
    "pad height and width, edge": (padded("edge"), (2, 5, 6, 1), (4, 7, 8, 3)),
    "pad height and width, reflect": (padded("reflect"), (2, 5, 6, 1), (2, 7, 8, 1)),
}
onnxruntime.set_default_logger_severity(3)
for name, (function, shape, expected) in cases.items():
    x = np.ones(shape, np.float32)
    rows = "n" if len(shape) == 4 else shape[0]
    like = [jax.ShapeDtypeStruct((rows, *shape[1:]), jnp.float32)]
    content = jax2onnx.to_onnx(function, like).SerializeToString()
    session = onnxruntime.InferenceSession(content)
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    print(f"{name}: {function(x).shape} in JAX, {found.shape} in ONNX")
    if found.shape != expected:
        print(f"expected {expected} in ONNX")
        raise SystemExit(1)
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/convert.py"
