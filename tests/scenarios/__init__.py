"""Stories an operator can read: what is done to a cluster, and what it then does."""
