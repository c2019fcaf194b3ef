"""What an engine is worth, measured: errors, crystals, dynamics, speed, and the report of it all."""
