#!/bin/sh
# Makes an environment that has Lightning beside everything of another one, which stays as it is.
#
#   tools/lightning_env.sh PYTHON FOLDER
#
# PYTHON is the other environment's. Versions 2.6.2 and 2.6.3 of Lightning stole credentials, and are never installed
# (Lightning-AI/pytorch-lightning#21691).
set -eu
python=$1
folder=$2
"$python" -m venv "$folder"
"$python" - "$folder" <<'PYTHON'
import sysconfig
import sys
from pathlib import Path

own = sysconfig.get_path("purelib", vars={"base": sys.argv[1], "platbase": sys.argv[1]})
line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
Path(own, "beside.pth").write_text(line, encoding="utf-8")
PYTHON
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    'lightning!=2.6.2,!=2.6.3' 'pytorch-lightning!=2.6.2,!=2.6.3'
"$folder/bin/python" -c 'import lightning; print(f"Lightning {lightning.__version__} is in {lightning.__path__[0]}")'
