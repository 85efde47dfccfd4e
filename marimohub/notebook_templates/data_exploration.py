import marimo

__generated_with = "MARIMO_VERSION"
app = marimo.App(width="medium", app_title="NOTEBOOK_TITLE")

with app.setup:
    import json
    import math
    import os
    from datetime import datetime, timezone
    from pathlib import Path

    import altair as alt
    import duckdb
    import marimo as mo
    import polars as pl


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # NOTEBOOK_TITLE

    Look around the warehouse: choose a table, see its rows, what its columns hold and how their values are spread.
    Everything below follows the table you choose.
    """)
    return


@app.cell
def _():
    con, snapshot_line = open_snapshot()
    snapshot_line
    return (con,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## 1. What is in the warehouse

    All tables and views, with DuckDB's own row estimates, so nothing has to be read to show them.
    """)
    return


@app.cell
def _(con):
    tables = mo.sql(
        f"""
        SELECT schema_name AS "schema", table_name AS "name", 'table' AS kind,
               estimated_size AS "rows", column_count AS "columns"
        FROM duckdb_tables()
        WHERE database_name = current_database() AND NOT internal

        UNION ALL

        SELECT schema_name, view_name, 'view', NULL, column_count
        FROM duckdb_views()
        WHERE database_name = current_database() AND NOT internal

        ORDER BY "schema", "name"
        """,
        engine=con
    )
    return (tables,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## 2. Choose a table

    The first rows, as they are stored. Numbers and text come as they are; other types are shown as text.
    """)
    return


@app.cell
def _(tables):
    mo.stop(tables.is_empty(), mo.callout("There are no tables here that you may see. Come back after the first sync, or ask an administrator."))

    table_picker = mo.ui.dropdown(
        options={label(row): row for row in tables.to_dicts()},
        value=label(tables.row(0, named=True)),
        label="Table",
        searchable=True,
    )
    preview_rows = mo.ui.dropdown(options={"10": 10, "100": 100, "1,000": 1000}, value="10", label="Rows to show")
    mo.hstack([table_picker, preview_rows], justify="start", gap=2, wrap=True)
    return preview_rows, table_picker


@app.cell
def _(con, table_picker):
    mo.stop(table_picker.value is None, mo.callout("Choose a table above."))

    table = table_picker.value
    table_sql = quoted(table["schema"]) + "." + quoted(table["name"])
    columns = ask(con, f"SELECT column_name, column_type FROM (DESCRIBE {table_sql})")
    return columns, table, table_sql


@app.cell
def _(columns, con, preview_rows, table_sql):
    columns_sql = select_list(columns)
    preview = ask(con, f"SELECT {columns_sql} FROM {table_sql} LIMIT $rows", {"rows": preview_rows.value})
    mo.ui.table(preview, selection=None, page_size=10, show_column_summaries=False)
    return (columns_sql,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## 3. Profile the columns

    How full each column is, about how many different values it has, and the lowest and highest of them.
    """)
    return


@app.cell
def _(columns, table, table_sql):
    # Reading 50 million values takes a second or two. Of a larger table, a sample is read.
    row_limit = 50_000_000 // columns.height

    if table["kind"] == "view":
        source = f"(FROM {table_sql} LIMIT {row_limit})"
        source_note = f"Reads at most the first {row_limit:,} rows of the view."
    elif table["rows"] > row_limit:
        source = f"(FROM {table_sql} TABLESAMPLE system({100 * row_limit / table['rows']:.4f}%) REPEATABLE (1))"
        source_note = f"Based on a sample of about {row_limit:,} of {table['rows']:,} rows."
    else:
        source = table_sql
        source_note = "Based on all rows."
    return source, source_note


@app.cell
def _(columns, con, source, source_note):
    _measures = [
        f"""{{
            'empty_percent': round(100 * (count(*) - count({column})) / nullif(count(*), 0), 1),
            'distinct': approx_count_distinct({column}),
            'lowest': left(min({column})::VARCHAR, 60),
            'highest': left(max({column})::VARCHAR, 60)
        }}"""
        for column in map(quoted, columns["column_name"])
    ]
    _answer = ask(con, f"SELECT count(*) AS row_count, [{', '.join(_measures)}] AS measures FROM {source}")
    row_count = _answer["row_count"].item()

    profile = pl.DataFrame(
        {"column": columns["column_name"], "type": columns["column_type"].str.slice(0, 40)}
    ).hstack(_answer["measures"].explode().struct.unnest())

    mo.vstack(
        [
            mo.hstack(
                [
                    mo.stat(f"{row_count:,}", label="Rows read", bordered=True),
                    mo.stat(columns.height, label="Columns", bordered=True),
                    mo.stat(profile.filter(pl.col("empty_percent") > 0).height, label="Columns with gaps", bordered=True),
                ],
                widths="equal",
                wrap=True,
            ),
            mo.ui.table(profile, selection=None, page_size=15, show_column_summaries=False, show_data_types=False),
            mo.md(f"<small>{source_note} Distinct counts are estimates.</small>"),
        ]
    )
    return (row_count,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## 4. Chart a column

    Numbers become a histogram, dates a line over time, everything else its most frequent values.
    """)
    return


@app.cell
def _(columns, row_count):
    mo.stop(row_count == 0, mo.callout("This table has no rows yet, so there is nothing to chart."))

    column_picker = mo.ui.dropdown(
        options=dict(columns.iter_rows()), value=chart_first(columns), label="Column", searchable=True
    )
    column_picker
    return (column_picker,)


@app.cell
def _(column_picker, con, source):
    mo.stop(column_picker.value is None, mo.callout("Choose a column above."))

    column = column_picker.selected_key
    draw = {"number": histogram, "time": over_time, "other": top_values}[kind_of(column_picker.value)]
    draw(con, source, column)
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## 5. Ask your own question

    Edit this query and run it. Names in braces, such as `{table_sql}`, are Python variables of this notebook;
    replace them by any table of the list above. The answer is the Polars data frame `result`.
    """)
    return


@app.cell
def _(columns_sql, con, table_sql):
    result = mo.sql(
        f"""
        SELECT {columns_sql}
        FROM {table_sql}
        LIMIT 100
        """,
        engine=con
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ---

    ### Behind the scenes

    The small functions the steps above call. Change them as you like.
    """)
    return


@app.function(hide_code=True)
def open_snapshot():
    """Connect to the hub's read-only snapshot of the warehouse; returns the connection and a line on its age."""
    snapshot = os.environ.get("MARIMOHUB_SNAPSHOT")
    if not snapshot:
        mo.stop(True, mo.callout("There is no warehouse snapshot here. Open this notebook from the hub's Notebooks page."))
    try:
        # a refreshed snapshot comes under another name, so the link is resolved before DuckDB sees it
        con = duckdb.connect(os.path.realpath(snapshot), read_only=True)
        taken = snapshot_time(Path(snapshot))
    except (duckdb.Error, OSError) as error:
        advice = mo.md("The warehouse snapshot cannot be opened. Open the notebook again from the hub's Notebooks page.")
        mo.stop(True, mo.callout(mo.vstack([advice, mo.plain_text(str(error))]), kind="warn"))

    minutes = int((datetime.now(timezone.utc) - taken).total_seconds() // 60)
    age = f"{minutes} min" if minutes < 120 else f"{minutes // 60} hours" if minutes < 2880 else f"{minutes // 1440} days"
    line = f"<small>Read-only snapshot of the warehouse, taken {taken:%d %b %Y, %H:%M} UTC ({age} before this cell ran).</small>"
    return con, mo.md(line)


@app.function(hide_code=True)
def snapshot_time(path):
    """When the snapshot was taken: when the hub last saw the warehouse unchanged (warehouse.json), else the time of the file."""
    try:
        checked = json.loads(path.with_suffix(".json").read_text())["checked"]
        return datetime.fromisoformat(checked).astimezone(timezone.utc)
    except (OSError, ValueError, KeyError, TypeError):
        return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)


@app.function(hide_code=True)
def ask(con, query, parameters=None):
    """Answer a query as a Polars data frame. If DuckDB cannot, show why and skip the cells that need it."""
    try:
        return pl.DataFrame(con.sql(query, params=parameters))
    except duckdb.Error as error:
        problem = mo.md("DuckDB cannot read this. Choose another table, or look at the reason:")
        mo.stop(True, mo.callout(mo.vstack([problem, mo.plain_text(str(error))]), kind="warn"))


@app.function(hide_code=True)
def quoted(name):
    """A name as SQL takes it, with whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


@app.function(hide_code=True)
def label(row):
    """A table's name for people: quoted only where it has unusual characters."""
    names = (row["schema"], row["name"])
    return ".".join(name if name.replace("_", "").isalnum() else quoted(name) for name in names)


@app.function(hide_code=True)
def kind_of(column_type):
    """Whether a column holds numbers, points in time, or something else."""
    if column_type.startswith(("DATE", "TIMESTAMP")) and not column_type.endswith("]"):
        return "time"
    numbers = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL")
    if column_type.removeprefix("U").startswith(numbers) and not column_type.endswith("]"):
        return "number"
    return "other"


@app.function(hide_code=True)
def select_list(columns):
    """`*`, with the types that a table on screen cannot hold (intervals, lists, infinite dates, …) cast to text."""
    as_text = [
        f"{quoted(name)}::VARCHAR AS {quoted(name)}"
        for name, column_type in columns.iter_rows()
        if kind_of(column_type) != "number" and column_type not in ("VARCHAR", "BOOLEAN")
    ]
    return f"* REPLACE ({', '.join(as_text)})" if as_text else "*"


@app.function(hide_code=True)
def chart_first(columns):
    """The column to chart first: a date, else a number, else the first."""
    by_kind = {kind_of(column_type): name for name, column_type in reversed(columns.rows())}
    return by_kind.get("time") or by_kind.get("number") or columns["column_name"][0]


@app.function(hide_code=True)
def histogram(con, source, column):
    """Bars over a number column, 4 to 40 of them, with round edges."""
    values = f"(SELECT TRY_CAST({quoted(column)} AS DOUBLE) AS x FROM {source})"
    low, high = ask(con, f"SELECT min(x), max(x) FROM {values} WHERE isfinite(x)").row(0)
    if low is None:
        return mo.callout(f"{column} has no numbers to chart.")

    span = (high - low) or 1
    power = 10 ** math.floor(math.log10(span / 10))
    width = next(power * step for step in (1, 2, 5, 10) if span / (power * step) <= 40)
    bars = ask(
        con,
        f"SELECT floor(x / $width) * $width AS low, low + $width AS high, count(*) AS row_count "
        f"FROM {values} WHERE isfinite(x) GROUP BY ALL ORDER BY low",
        {"width": width},
    )
    return styled(
        alt.Chart(bars)
        .mark_bar()
        .encode(
            x=alt.X("low:Q", bin="binned", title=column),
            x2="high:Q",
            y=alt.Y("row_count:Q", title="Rows"),
            tooltip=["low:Q", "high:Q", alt.Tooltip("row_count:Q", title="rows", format=",")],
        )
    )


@app.function(hide_code=True)
def over_time(con, source, column):
    """Rows per hour, day, week, month or year, whichever gives a readable line."""
    dates = f"(SELECT TRY_CAST({quoted(column)} AS TIMESTAMP) AS t FROM {source})"
    ordinary = "year(t) BETWEEN 1 AND 9998"  # leaves out infinity and the year 9999, which often stand for "open end"
    days, first = ask(con, f"SELECT date_diff('day', min(t), max(t)), min(t) FROM {dates} WHERE {ordinary}").row(0)
    if first is None:
        return mo.callout(f"{column} has no dates to chart.")

    grains = {3: "hour", 120: "day", 730: "week", 7300: "month"}
    grain = next((name for limit, name in grains.items() if days <= limit), "year")
    points = ask(
        con,
        f"SELECT date_trunc($grain, t)::TIMESTAMP AS start, count(*) AS row_count "
        f"FROM {dates} WHERE {ordinary} GROUP BY ALL ORDER BY start",
        {"grain": grain},
    )
    return styled(
        alt.Chart(points)
        .mark_area(line={"color": "#4c8dd6"}, opacity=0.25, interpolate="monotone")
        .encode(
            x=alt.X("start:T", title=column),
            y=alt.Y("row_count:Q", title=f"Rows per {grain}"),
            tooltip=[alt.Tooltip("start:T", title=grain), alt.Tooltip("row_count:Q", title="rows", format=",")],
        )
    )


@app.function(hide_code=True)
def top_values(con, source, column):
    """The fifteen most frequent values."""
    bars = ask(
        con,
        f"SELECT coalesce(left({quoted(column)}::VARCHAR, 40), '(empty)') AS \"value\", count(*) AS row_count "
        f"FROM {source} GROUP BY ALL ORDER BY row_count DESC, \"value\" LIMIT 15",
    )
    return styled(
        alt.Chart(bars)
        .mark_bar(cornerRadiusEnd=2)
        .encode(
            x=alt.X("row_count:Q", title="Rows"),
            y=alt.Y("value:N", sort="-x", title=column),
            tooltip=["value:N", alt.Tooltip("row_count:Q", title="rows", format=",")],
        )
    )


@app.function(hide_code=True)
def styled(chart):
    """One look for all charts, on light and dark pages."""
    return (
        chart.properties(width="container", height=300)
        .configure_mark(color="#4c8dd6")
        .configure_view(strokeWidth=0)
        .configure_axis(titleFontWeight="normal", titlePadding=10, gridOpacity=0.4, labelLimit=240)
        .configure_axisX(grid=False)
    )


if __name__ == "__main__":
    app.run()
