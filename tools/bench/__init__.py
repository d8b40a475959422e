"""``smelt bench``: models against their peers in interleaved runs, beside what the machine reaches."""
