"""The only importer of `redis`: keys, scripts, connections and what is read and written through them."""
