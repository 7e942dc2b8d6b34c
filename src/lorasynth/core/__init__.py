"""What every room stands on: errors, atomic files, configs, random streams, progress, registries."""
