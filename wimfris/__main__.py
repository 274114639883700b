"""`python -m wimfris`, and so `torchrun -m wimfris`: the command line."""

from wimfris.cli.app import main

main()
