#!/usr/bin/env bash
# Makes the images of README.md, each below 150 kB. Needs Chromium for the screenshot.
#
#     docs/pictures.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

"$python" audit.py --config=configs/default.py --output=docs/audit-default.png
"$python" audit.py --config=configs/heldout.py --output=docs/audit-heldout.png
"$python" train.py --config=configs/heldout.py --workdir=runs/heldout
"$python" docs/pairs.py --workdir=runs/heldout
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1100,850 \
	--screenshot=docs/report.png "file://$PWD/runs/heldout/evaluation/report.html"

# Fewer colours make smaller files.
"$python" - docs/*.png <<'END'
import os
import sys

from PIL import Image

for path in sys.argv[1:]:
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    print(f"{path}: {os.path.getsize(path):,} bytes")
    assert os.path.getsize(path) < 150_000, f"{path} is too large"
END
