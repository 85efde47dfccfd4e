"""What runs beside marimo in each user's server: sign-in, notebook sync, presence.

Imports nothing of the hub: it must work in any environment that has jupyterhub, marimo and duckdb.
"""
