"""Below every room: errors, atomic files, configs, random streams, progress, registries."""
