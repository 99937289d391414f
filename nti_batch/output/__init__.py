"""What a run writes and reads back: parts, manifests, status, dataset, export."""
