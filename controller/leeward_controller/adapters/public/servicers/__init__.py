"""One servicer a service of the contract: each method converts, calls, converts back."""
