#!/usr/bin/env bash
# The commands of docs/tutorial/own-model.md, run by tests/test_own_model.py in a folder with mine.yaml and talks.jsonl.
set -euo pipefail

# --8<-- [start:schema]
rqat recipes schema -o rqat.schema.json
rqat recipes validate mine.yaml
# --8<-- [end:schema]

# --8<-- [start:plan]
rqat plan mine.yaml --data
# --8<-- [end:plan]

# --8<-- [start:until]
rqat qat mine.yaml --until quantize-gptq
rqat runs
# --8<-- [end:until]

# --8<-- [start:qat]
rqat qat mine.yaml
# --8<-- [end:qat]

# --8<-- [start:change]
rqat plan mine.yaml --set train.kd.lr=3e-5
# --8<-- [end:change]

# --8<-- [start:generate]
rqat generate runs/mine/04-export/model "How many minutes are in 4 hours?" --max-new-tokens 40
# --8<-- [end:generate]
