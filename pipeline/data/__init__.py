"""Data sets: `catalog` describes them, `sources` makes them, `prepare` lays them on disk, `loader` hands them to ranks."""
