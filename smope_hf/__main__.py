"""`python -m smope_hf` is the command line `smope`."""

from .cli import main

main()
