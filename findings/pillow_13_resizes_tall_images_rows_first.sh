#!/bin/sh
# Pillow 13 gives other pixels than Pillow 12 when it resizes a tall image.
#
# A resize has two passes, one along each axis, and each rounds to 8 bits. Pillow 12 always takes the
# columns (the width) first. Pillow 13 takes the rows (the height) first where that is less work. For a
# square result of S pixels from width w and height h, that is where 2 w < h + S. The order decides how
# values are rounded: up to a fifth of them differ by one grey level. Wide images are as before.
# So the same set of files, resized by the same code, is not the same training data in both versions.
#
# Seen: Pillow 12.0.0 and 13.0.0 on Linux x86_64, numpy 2.4.6. Needs python3 from 3.11 to 3.13. Output:
#   12.0.0: columns first for all of 400 sizes
#   13.0.0: rows first exactly where 2 w < h + 48
# Exits with 1 if this is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/order.py" <<'PYTHON'
import numpy as np
import PIL
from PIL import Image

SIDE, BILINEAR = 48, Image.Resampling.BILINEAR
random, tall, orders = np.random.default_rng(0), [], []
for _ in range(400):
    width, height = random.integers(60, 400, 2).tolist()
    image = Image.fromarray(random.integers(0, 256, (height, width), np.uint8))
    found = np.asarray(image.resize((SIDE, SIDE), BILINEAR))
    columns = image.resize((SIDE, height), BILINEAR).resize((SIDE, SIDE), BILINEAR)
    rows = image.resize((width, SIDE), BILINEAR).resize((SIDE, SIDE), BILINEAR)
    is_rows, is_columns = ((found == np.asarray(one)).all() for one in (rows, columns))
    assert is_rows != is_columns
    orders.append(is_rows)
    tall.append(2 * width < height + SIDE)
if not any(orders):
    print(f"{PIL.__version__}: columns first for all of {len(orders)} sizes")
elif orders == tall:
    print(f"{PIL.__version__}: rows first exactly where 2 w < h + {SIDE}")
PYTHON
for version in 12.0.0 13.0.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check \
        "pillow==$version" numpy==2.4.6
    "$folder/$version/bin/python" "$folder/order.py"
done > "$folder/found"
cat "$folder/found"
[ "$(cat "$folder/found")" = "12.0.0: columns first for all of 400 sizes
13.0.0: rows first exactly where 2 w < h + 48" ]
