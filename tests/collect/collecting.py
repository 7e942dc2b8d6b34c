"""A collection in this process, as tests ask for it."""

from lorasynth import collect as room


def collect(base, source, path, recipe, *, fleet=16, attempts=2, retry_failed=False, **parts):
    config = room.CollectConfig(fleet=fleet, attempts=attempts, retry_failed=retry_failed)
    return room.collect(room.Worker(base=base, **parts), source, path, recipe, config)
