"""From images to features, metrics and selected snapshots: the stages sample, extract, measure and select."""
