#!/usr/bin/env bash
# Build sdist and wheel, and install the wheel with each extra alone into an empty environment: import, help, `pip check`.
#   scripts/check_packages.sh [EXTRA...]      by default every extra that users install
#   PYTHON=python3.12  TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
# The wheel without extras is installed once; every extra is added to a copy of that environment, at the same path (hard
# links: installations replace files and do not change them). This takes gigabytes of temporary space; it is not part of
# `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
torch=${TORCH:-torch --index-url https://download.pytorch.org/whl/cpu}
extras=("$@")
[[ ${#extras[@]} -gt 0 ]] || extras=(none dna ecg forecasting pathology slides excel plots holidays gpu export adapters tune wandb docs all)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/pip" install --quiet build
"$work/build/bin/python" -m build --outdir "$work/dist" . > "$work/build.log" 2>&1 || { tail -20 "$work/build.log"; exit 1; }
ls -l "$work/dist"
wheel=$(ls "$work"/dist/*.whl)

"$python" -m venv "$work/env"
# shellcheck disable=SC2086 - several arguments
"$work/env/bin/pip" install --quiet --constraint constraints.txt $torch
"$work/env/bin/pip" install --quiet --constraint constraints.txt "$wheel"
cp -a "$work/env" "$work/plain"

for extra in "${extras[@]}"; do
  rm -rf "$work/env"
  cp -al "$work/plain" "$work/env"
  [[ $extra == none ]] || "$work/env/bin/pip" install --quiet --constraint constraints.txt "$wheel[$extra]"
  "$work/env/bin/pip" check
  (
    cd "$work"  # not the checkout, whose packages would be imported
    "$work/env/bin/seqssm" --help > help.txt
    "$work/env/bin/python" - "$extra" <<'PYTHON'
import sys
from importlib import import_module

import seqssm
import seqssm_kernels
from seqssm.domain import domains

extra = sys.argv[1]
for name, domain in domains().items():
    if domain.missing() is None:
        for target in (domain.task, domain.data, domain.predictor, domain.demo):
            import_module(target.partition(":")[0])
    assert extra not in (name, "all") or domain.missing() is None, domain.missing()
assert "site-packages" in seqssm.__file__, seqssm.__file__
assert "site-packages" in seqssm_kernels.__file__
PYTHON
    if [[ $extra == forecasting || $extra == all ]]; then  # a whole run with the installed package
      "$work/env/bin/python" -c 'from seqssm_forecasting import simulate; simulate.series(400, 3).to_csv("my.csv", index=False)'
      rm -rf run
      "$work/env/bin/seqssm" forecasting fit --config smamba --data.file my.csv --data.lookback 24 --data.horizon 6 \
        --model.d_model 8 --trainer.max_epochs 1 --trainer.accelerator cpu --output run > fit.txt
      "$work/env/bin/seqssm" forecasting test run > test.txt
      "$work/env/bin/seqssm" report run
      "$work/env/bin/seqssm" predict run/best.ckpt my.csv --output "forecast-$extra.csv" --accelerator cpu
    fi
  )
  echo "$extra: installed alone, imported, pip check clean"
done
