"""From interaction files and item text to a `Dataset` over a `Catalog`: formats, checks, cores, splits."""
