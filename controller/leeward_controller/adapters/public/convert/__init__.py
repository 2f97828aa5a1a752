"""Values to messages of `leeward.v1` and back: the only place, with the servicers' signatures, that sees them."""
