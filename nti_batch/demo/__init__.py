"""The embedded model, its sample shards, and the recipe that made them."""
