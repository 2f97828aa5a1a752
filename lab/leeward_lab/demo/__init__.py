"""`make demo`: Leeward's main job, shown and checked."""
