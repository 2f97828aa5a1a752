"""`make tour`: every operation on real guests through the command line, each with a check of its promise."""
