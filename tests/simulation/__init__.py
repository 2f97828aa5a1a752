"""The real controllers and agents on virtual time."""
