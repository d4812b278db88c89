"""`python -m bivrec`, and the entry of `accelerate launch -m bivrec`."""

from bivrec.cli import main

main()
