"""`python -m leeward.cli`: the command line where `leeward` is not on the path."""

from leeward.cli.main import main

main()
