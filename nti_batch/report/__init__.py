"""What a person or a script looks at: pages, previews, checks and scores of a run."""
