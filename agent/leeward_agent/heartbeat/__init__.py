"""How a host shows that it is alive, and how its guard learns until when that holds."""
