"""Pictures of learning curves; matplotlib is imported on first use."""
