#!/usr/bin/env bash
# The commands of docs/tutorial/first-quantization.md, run by tests/test_docs.py in an empty folder.
set -euo pipefail

# --8<-- [start:before]
rqat eval arith builtin:tiny-reasoner --limit 100
# --8<-- [end:before]

# --8<-- [start:rtn]
rqat quantize builtin:tiny-reasoner --method rtn --scheme w2g128 -o tiny-rtn
rqat eval arith tiny-rtn --limit 100
# --8<-- [end:rtn]

# --8<-- [start:gptq]
rqat quantize builtin:tiny-reasoner --method gptq --scheme w2g128 --calibration arith -o tiny-gptq
rqat eval arith tiny-gptq --limit 100
# --8<-- [end:gptq]

# --8<-- [start:generate]
rqat generate tiny-gptq $'Mia starts with 20 figs. A friend takes 3. Mia finds 44 more. How many figs are there at the end?\n'
# --8<-- [end:generate]

# --8<-- [start:plan]
rqat plan quickstart
# --8<-- [end:plan]
