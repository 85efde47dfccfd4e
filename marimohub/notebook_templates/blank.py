import marimo

__generated_with = "MARIMO_VERSION"
app = marimo.App(width="medium", app_title="NOTEBOOK_TITLE")

with app.setup:
    import os
    from datetime import datetime

    import altair as alt
    import duckdb
    import marimo as mo
    import polars as pl


@app.cell
def _():
    # The warehouse as it was when this notebook was opened. It can be read, not changed.
    try:
        con = duckdb.connect(os.path.realpath(os.environ["MARIMOHUB_SNAPSHOT"]), read_only=True)
    except (KeyError, duckdb.Error):
        mo.stop(True, mo.callout("There is no warehouse snapshot here. Open this notebook from the hub's Notebooks page."))

    _taken = datetime.fromtimestamp(os.path.getmtime(os.environ["MARIMOHUB_SNAPSHOT"])).astimezone()
    mo.md(f"<small>Warehouse snapshot of {_taken:%d %b %Y, %H:%M %Z}</small>")
    return


@app.cell
def _():
    return


if __name__ == "__main__":
    app.run()
