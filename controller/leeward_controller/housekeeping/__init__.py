"""What the leader sees to by itself: timers, backups, and what nobody needs any more. One module a duty."""
