"""Ready-to-use configurations, and the commented one that `marimohub init` writes."""
