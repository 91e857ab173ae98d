"""`python -m hookbrew`, the same as the command `hookbrew`."""

from hookbrew.cli import main

main(prog_name="hookbrew")
