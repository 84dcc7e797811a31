"""`python -m kvstore.cli`: kvctl where no script is installed."""

from kvstore.cli.main import main

main()
