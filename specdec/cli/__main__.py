"""`python -m specdec.cli`, where no console script is installed."""

from specdec.cli import main

main()
