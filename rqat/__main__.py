"""`python -m rqat` is the `rqat` command."""

from .cli.app import main

main()
