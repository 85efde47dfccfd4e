"""Spawners that start marimo for a user: local processes here; containers and pods over the same base."""
