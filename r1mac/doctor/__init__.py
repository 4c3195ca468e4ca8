"""What could keep r1mac from running well on this computer: found, why it matters, what to do."""
