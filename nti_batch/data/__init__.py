"""The input: shards, their samples, and the packing of images into shards."""
