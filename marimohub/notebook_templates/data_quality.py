import marimo

__generated_with = "MARIMO_VERSION"
app = marimo.App(width="medium", app_title="NOTEBOOK_TITLE")

with app.setup:
    import json
    import os
    from datetime import datetime, timedelta, timezone
    from pathlib import Path

    import altair as alt
    import duckdb
    import marimo as mo
    import polars as pl

    STATUS_COLORS = {"Fail": "#dc4c4c", "Warn": "#d58a1f", "Pass": "#2f9e6b", "Skipped": "#8a8f98"}


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # NOTEBOOK_TITLE

    Is this table fit for use? Choose one: the verdict is shown first, the reasons and the limits you can move follow below.
    """)
    return


@app.cell
def _():
    con, snapshot_line = open_snapshot()
    snapshot_line
    return (con,)


@app.cell
def _(con):
    tables = ask(
        con,
        """
        SELECT schema_name AS "schema", table_name AS "name", 'table' AS kind, estimated_size AS "rows"
        FROM duckdb_tables()
        WHERE database_name = current_database() AND NOT internal
        UNION ALL
        SELECT schema_name, view_name, 'view', NULL
        FROM duckdb_views()
        WHERE database_name = current_database() AND NOT internal
        ORDER BY "schema", "name"
        """,
    )
    mo.stop(tables.is_empty(), mo.callout("There are no tables here that you may see. Come back after the first sync, or ask an administrator."))

    table_picker = mo.ui.dropdown(
        options={label(row): row for row in tables.to_dicts()},
        value=label(tables.row(0, named=True)),
        label="Table",
        searchable=True,
    )
    every_row = mo.ui.switch(label="Check every row, however large")
    mo.hstack([table_picker, every_row], justify="start", gap=2, wrap=True)
    return every_row, table_picker


@app.cell(hide_code=True)
def _(checks, row_count, source_note, table_picker):
    # The checks come from the sections below; marimo runs those first.
    _counts = {status: sum(check["status"] == status for check in checks) for status in STATUS_COLORS}
    _verdict = next(status for status in ("Fail", "Warn", "Pass", "Skipped") if _counts[status])
    _sentence = {
        "Fail": "needs attention: at least one check fails.",
        "Warn": "is usable, with warnings to look at.",
        "Pass": "passes every check.",
        "Skipped": "has nothing to check yet.",
    }[_verdict]
    _kind = {"Fail": "danger", "Warn": "warn", "Pass": "success", "Skipped": "neutral"}[_verdict]

    mo.vstack(
        [
            mo.callout(mo.md(f"**{_verdict}** · `{table_picker.selected_key}` {_sentence}"), kind=_kind),
            mo.hstack(
                [
                    mo.stat(f"{row_count:,}", label="Rows checked", bordered=True),
                    mo.stat(_counts["Pass"], label="Passed", bordered=True),
                    mo.stat(_counts["Warn"], label="Warnings", bordered=True),
                    mo.stat(_counts["Fail"], label="Failed", bordered=True),
                ],
                widths="equal",
                wrap=True,
            ),
            status_table(pl.DataFrame(checks).select("status", "check", "finding")),
            mo.md(f"<small>{source_note}</small>"),
        ],
        gap=1,
    )
    return


@app.cell
def _(con, every_row, table_picker):
    mo.stop(table_picker.value is None, mo.callout("Choose a table above."))

    table = table_picker.value
    table_sql = quoted(table["schema"]) + "." + quoted(table["name"])
    columns = ask(con, f"SELECT column_name, column_type FROM (DESCRIBE {table_sql})")
    numbers = [name for name, column_type in columns.iter_rows() if kind_of(column_type) == "number"]
    dates = [name for name, column_type in columns.iter_rows() if kind_of(column_type) == "time"]

    # Checking 50 million values takes a few seconds. Of a larger table, a sample is checked.
    row_limit = 50_000_000 // columns.height

    if every_row.value or (table["kind"] == "table" and table["rows"] <= row_limit):
        source = table_sql
        source_note = "Every row was checked."
    elif table["kind"] == "view":
        source = f"(FROM {table_sql} LIMIT {row_limit})"
        source_note = f"At most the first {row_limit:,} rows of the view were checked."
    else:
        source = f"(FROM {table_sql} TABLESAMPLE system({100 * row_limit / table['rows']:.4f}%) REPEATABLE (1))"
        source_note = f"A sample of about {row_limit:,} of {table['rows']:,} rows was checked; it finds only some duplicates."

    row_count = ask(con, f"SELECT count(*) FROM {source}").item()
    return columns, dates, numbers, row_count, source, source_note, table


@app.cell
def _(
    dates_check,
    duplicates_check,
    freshness_check,
    key_check,
    limits_check,
    nulls_check,
    outliers_check,
    row_count,
):
    has_rows = {
        "check": "Rows",
        "status": "Pass" if row_count else "Warn",
        "finding": f"{row_count:,} rows" if row_count else "The table is empty",
    }
    checks = [
        has_rows,
        nulls_check,
        duplicates_check,
        key_check,
        outliers_check,
        limits_check,
        dates_check,
        freshness_check,
    ]
    return (checks,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## Missing values

    The share of empty (NULL) values in each column. Above the first mark a column gets a warning, above the second it fails.
    """)
    return


@app.cell
def _():
    null_limits = mo.ui.range_slider(
        start=0, stop=100, step=1, value=[5, 50], label="Warn and fail above (% empty)", show_value=True
    )
    null_limits
    return (null_limits,)


@app.cell
def _(columns, con, null_limits, row_count, source):
    _counts = [f"count(*) - count({column})" for column in map(quoted, columns["column_name"])]
    _empty = ask(con, f"SELECT [{', '.join(_counts)}] AS empty FROM {source}")["empty"].explode()
    _warn_above, _fail_above = null_limits.value

    nulls = (
        pl.DataFrame({"column": columns["column_name"], "empty": _empty})
        .with_columns(percent=(100 * pl.col("empty") / max(row_count, 1)).round(2))
        .with_columns(
            status=pl.when(pl.col("percent") > _fail_above)
            .then(pl.lit("Fail"))
            .when(pl.col("percent") > _warn_above)
            .then(pl.lit("Warn"))
            .otherwise(pl.lit("Pass"))
        )
        .sort("percent", descending=True)
    )
    nulls_check = verdict("Missing values", row_count, nulls, f"No column is more than {_warn_above} % empty")

    mo.vstack([null_chart(nulls), status_table(nulls.select("status", "column", "empty", "percent"))])
    return (nulls_check,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## Duplicates

    Rows that are the same in every column, and rows that share a key with another row.
    The key is guessed from the table's primary key or its `id` column; choose other columns if they identify a row.
    """)
    return


@app.cell
def _(columns, con, table):
    key_picker = mo.ui.multiselect(
        options=columns["column_name"].to_list(), value=guess_key(con, table, columns), label="Key columns"
    )
    key_picker
    return (key_picker,)


@app.cell
def _(columns, con, row_count, source):
    _every_column = ", ".join(map(quoted, columns["column_name"]))
    _copies = row_count - ask(con, f"SELECT count(DISTINCT hash({_every_column})) FROM {source}").item()
    duplicates_check = {
        "check": "Duplicate rows",
        "status": "Skipped" if row_count == 0 else "Fail" if _copies else "Pass",
        "finding": f"{_copies:,} rows repeat another row" if _copies else "No row is repeated",
    }
    repeated_rows(con, source, columns, columns["column_name"].to_list()) if _copies else mo.md("No row is repeated.")
    return (duplicates_check,)


@app.cell
def _(columns, con, key_picker, row_count, source):
    _key = ", ".join(map(quoted, key_picker.value))
    if key_picker.value and row_count:
        _no_key = " OR ".join(f"{quoted(name)} IS NULL" for name in key_picker.value)
        _different, _empty = ask(
            con, f"SELECT count(DISTINCT hash({_key})), count(*) FILTER (WHERE {_no_key}) FROM {source}"
        ).row(0)
        _repeated = row_count - _different
        key_check = {
            "check": "Duplicate keys",
            "status": "Fail" if _repeated or _empty else "Pass",
            "finding": f"{_key}: {_repeated:,} repeated, {_empty:,} empty",
        }
        _details = repeated_rows(con, source, columns, key_picker.value) if _repeated else mo.md(f"{_key}: no key is repeated.")
    else:
        _reason = "Nothing to check" if key_picker.value else "No key columns are chosen"
        key_check = {"check": "Duplicate keys", "status": "Skipped", "finding": _reason}
        _details = mo.md(f"{_reason}.")
    _details
    return (key_check,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## Ranges

    A number is an outlier when it lies further from the middle half of its column than so many times that half's width
    (the interquartile range). Outliers are worth a look and give a warning; values outside limits that you set fail.
    """)
    return


@app.cell
def _():
    outlier_factor = mo.ui.slider(start=1.5, stop=10, step=0.5, value=3, label="Outlier factor", show_value=True)
    outlier_factor
    return (outlier_factor,)


@app.cell
def _(con, numbers, outlier_factor, row_count, source):
    outliers = find_outliers(con, source, numbers, outlier_factor.value)
    outliers_check = verdict("Outliers", row_count and len(numbers), outliers, "No number is far from the others")
    status_table(outliers) if numbers else mo.md("This table has no number columns.")
    return outliers, outliers_check


@app.cell
def _(columns, con, outliers, source):
    outlier_rows = mo.md("")
    if "Warn" in outliers["status"]:
        _worst = outliers.row(0, named=True)
        _value = f"TRY_CAST({quoted(_worst['column'])} AS DOUBLE)"
        _rows = ask(
            con,
            f"SELECT {select_list(columns)} FROM {source} WHERE isfinite({_value}) "
            f"AND {_value} NOT BETWEEN $low AND $high ORDER BY abs({_value}) DESC LIMIT 50",
            {"low": _worst["expected_from"], "high": _worst["expected_to"]},
        )
        outlier_rows = details(f"Rows with outliers in {_worst['column']}", _rows)
    outlier_rows
    return


@app.cell
def _(dates, numbers):
    limited_column = mo.ui.dropdown(options=numbers + dates, label="Limits for", searchable=True)
    lowest = mo.ui.text(label="from", placeholder="0 or 2024-01-31")
    highest = mo.ui.text(label="to", placeholder="no limit")
    mo.hstack([limited_column, lowest, highest], justify="start", gap=1, wrap=True)
    return highest, limited_column, lowest


@app.cell
def _(columns, con, highest, limited_column, lowest, row_count, source):
    limits_check = {"check": "Your limits", "status": "Skipped", "finding": "No limits are set"}
    limit_rows = mo.md("Choose a column and a limit to check it.")

    if limited_column.value and (lowest.value or highest.value):
        _column = quoted(limited_column.value)
        _type = dict(columns.iter_rows())[limited_column.value]
        _limits = {"low": lowest.value or None, "high": highest.value or None}
        _outside = (
            f"FROM {source} WHERE {_column} < TRY_CAST($low::VARCHAR AS {_type}) "
            f"OR {_column} > TRY_CAST($high::VARCHAR AS {_type})"
        )
        _count = ask(con, f"SELECT count(*) {_outside}", _limits).item()
        limits_check["status"] = "Fail" if _count else "Pass"
        limits_check["finding"] = f"{limited_column.value}: {_count:,} of {row_count:,} rows lie outside"
        limit_rows = details("Rows outside", ask(con, f"SELECT {select_list(columns)} {_outside} LIMIT 50", _limits))

        for _text in filter(None, _limits.values()):
            if ask(con, f"SELECT TRY_CAST($text AS {_type}) IS NULL", {"text": _text}).item():
                limits_check.update(status="Skipped", finding=f"“{_text}” is not a value of type {_type}")
                limit_rows = mo.callout(limits_check["finding"], kind="warn")
    limit_rows
    return (limits_check,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## Dates

    Dates later than tomorrow fail, unless you say that a column may lie in the future.
    Infinity and the year 9999 count as "open end" and are left out.
    """)
    return


@app.cell
def _(dates):
    may_be_future = mo.ui.multiselect(options=dates, label="May lie in the future")
    may_be_future
    return (may_be_future,)


@app.cell
def _(con, dates, may_be_future, row_count, source):
    date_ranges = find_date_ranges(con, source, dates).with_columns(
        status=pl.when((pl.col("in_future") > 0) & ~pl.col("column").is_in(may_be_future.value))
        .then(pl.lit("Fail"))
        .otherwise(pl.lit("Pass"))
    )
    dates_check = verdict("Dates", row_count and len(dates), date_ranges, "No date lies in the future")
    status_table(date_ranges.drop("newest_past")) if dates else mo.md("This table has no date columns.")
    return date_ranges, dates_check


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## Freshness

    How long ago the newest date of a column was; future dates do not count. Older than your limit fails.
    """)
    return


@app.cell
def _(date_ranges, dates):
    # The column with the newest date tells best when the table was last fed. Birthdays never do.
    _candidates = date_ranges.filter(~pl.col("column").str.contains("(?i)birth"), pl.col("newest_past").is_not_null())
    _newest = _candidates.sort("newest_past", descending=True, maintain_order=True)["column"].to_list()

    fresh_column = mo.ui.dropdown(options=dates, value=_newest[0] if _newest else None, label="Column")
    max_age = mo.ui.number(start=1, stop=3650, value=30, label="At most this many days old")
    mo.hstack([fresh_column, max_age], justify="start", gap=2, wrap=True)
    return fresh_column, max_age


@app.cell
def _(date_ranges, fresh_column, max_age):
    freshness_check = {"check": "Freshness", "status": "Skipped", "finding": "No date column to judge by"}

    _newest = dict(date_ranges.select("column", "newest_past").iter_rows()).get(fresh_column.value)
    if _newest:
        _days = (datetime.now() - datetime.fromisoformat(_newest)).days
        freshness_check["status"] = "Pass" if _days <= max_age.value else "Fail"
        freshness_check["finding"] = f"The newest {fresh_column.value} is {max(_days, 0):,} days old"
    mo.md(f"{freshness_check['finding']}.")
    return (freshness_check,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ---

    ### Behind the scenes

    The small functions the checks above call. Change them as you like.
    """)
    return


@app.function(hide_code=True)
def verdict(check, anything_to_check, findings, all_well):
    """One line of the summary: the worst status among the columns, and which columns have it."""
    if not anything_to_check:
        return {"check": check, "status": "Skipped", "finding": "Nothing to check"}
    for status in ("Fail", "Warn"):
        names = findings.filter(pl.col("status") == status)["column"].to_list()
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            word = "column" if len(names) == 1 else "columns"
            return {"check": check, "status": status, "finding": f"{len(names)} {word}: {', '.join(names[:4])}{more}"}
    return {"check": check, "status": "Pass", "finding": all_well}


@app.function(hide_code=True)
def status_table(findings):
    """A table whose status column is colored."""

    def color(_row, column, value):
        return {"color": STATUS_COLORS.get(value, ""), "fontWeight": "600"} if column == "status" else {}

    return mo.ui.table(
        findings, selection=None, page_size=10, show_column_summaries=False, show_data_types=False, style_cell=color
    )


@app.function(hide_code=True)
def details(title, rows):
    """Some of the rows behind a finding."""
    table = mo.ui.table(rows, selection=None, page_size=10, show_column_summaries=False, show_data_types=False)
    return mo.vstack([mo.md(f"**{title}** (up to 50)"), table])


@app.function(hide_code=True)
def null_chart(nulls):
    """The emptiest columns as bars, colored by status."""
    worst = nulls.filter(pl.col("empty") > 0).head(15)
    if worst.is_empty():
        return mo.md("No value is missing.")
    return (
        alt.Chart(worst)
        .mark_bar(cornerRadiusEnd=2)
        .encode(
            x=alt.X("percent:Q", title="% empty", scale=alt.Scale(domain=[0, 100])),
            y=alt.Y("column:N", sort="-x", title=None),
            color=alt.Color(
                "status:N", scale=alt.Scale(domain=list(STATUS_COLORS), range=list(STATUS_COLORS.values())), legend=None
            ),
            tooltip=["column:N", "percent:Q", alt.Tooltip("empty:Q", format=",")],
        )
        .properties(width="container", height=alt.Step(24))
        .configure_view(strokeWidth=0)
        .configure_axis(titleFontWeight="normal", titlePadding=10, gridOpacity=0.4, labelLimit=240)
        .configure_axisY(grid=False)
    )


@app.function(hide_code=True)
def guess_key(con, table, columns):
    """The declared primary key, else a column called `id` or, in table `orders`, `order_id`; else nothing."""
    declared = ask(
        con,
        "SELECT unnest(constraint_column_names) FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY' "
        "AND database_name = current_database() AND schema_name = $schema AND table_name = $name",
        {"schema": table["schema"], "name": table["name"]},
    )
    if not declared.is_empty():
        return declared.to_series().to_list()
    name = table["name"].lower()
    usual = ("id", f"{name}_id", f"{name.removesuffix('s')}_id")
    return [column for column in columns["column_name"] if column.lower() in usual][:1]


@app.function(hide_code=True)
def repeated_rows(con, source, columns, key):
    """Which values of the key columns occur more than once, the most frequent first."""
    chosen = columns.filter(pl.col("column_name").is_in(key))
    key_sql = ", ".join(map(quoted, key))
    rows = ask(
        con,
        f"SELECT {select_list(chosen)} FROM (SELECT {key_sql}, count(*) AS \"times found\" FROM {source} "
        f"GROUP BY {key_sql} HAVING count(*) > 1) ORDER BY \"times found\" DESC LIMIT 50",
    )
    return details("Found more than once", rows)


@app.function(hide_code=True)
def find_outliers(con, source, columns, factor):
    """Per number column: the expected range by the interquartile rule, and how many values lie outside."""
    schema = {"status": pl.String, "column": pl.String, "outliers": pl.Int64, "lowest": pl.Float64, "highest": pl.Float64}
    expected = {"expected_from": pl.Float64, "expected_to": pl.Float64}
    if not columns:
        return pl.DataFrame(schema=schema | expected)

    values = [f"TRY_CAST({quoted(column)} AS DOUBLE)" for column in columns]
    quartiles = [f"approx_quantile({value}, [0.25, 0.75]) FILTER (WHERE isfinite({value}))" for value in values]
    ranges = []
    for quartile in ask(con, f"SELECT [{', '.join(quartiles)}] AS quartiles FROM {source}")["quartiles"].item():
        low, high = (None, None) if quartile is None else quartile
        reach = factor * (high - low) if low is not None and high > low else None  # no spread, no rule
        ranges.append((None, None) if reach is None else (low - reach, high + reach))

    measures = [
        f"{{'outliers': count(*) FILTER (WHERE isfinite({value}) AND {value} NOT BETWEEN ${2 * i + 1} AND ${2 * i + 2}), "
        f"'lowest': min({value}) FILTER (WHERE isfinite({value})), 'highest': max({value}) FILTER (WHERE isfinite({value}))}}"
        for i, value in enumerate(values)
    ]
    limits = [limit for pair in ranges for limit in pair]
    counted = ask(con, f"SELECT [{', '.join(measures)}] AS measures FROM {source}", limits)
    return (
        pl.DataFrame({"column": columns})
        .hstack(counted["measures"].explode().struct.unnest())
        .hstack(pl.DataFrame(ranges, schema=expected, orient="row"))
        .with_columns(status=pl.when(pl.col("outliers") > 0).then(pl.lit("Warn")).otherwise(pl.lit("Pass")))
        .select(*schema, *expected)
        .sort("outliers", descending=True, maintain_order=True)
    )


@app.function(hide_code=True)
def find_date_ranges(con, source, columns):
    """Per date column: the oldest and newest date, how many lie in the future, and the newest that does not."""
    measures = [
        f"{{'oldest': min(t{i})::VARCHAR, 'newest': max(t{i})::VARCHAR, 'in_future': count(*) FILTER (WHERE t{i} > $tomorrow), "
        f"'newest_past': max(t{i}) FILTER (WHERE t{i} <= $tomorrow)::VARCHAR}}"
        for i in range(len(columns))
    ]
    times = [
        f"CASE WHEN year({quoted(column)}) BETWEEN 1 AND 9998 THEN {quoted(column)}::TIMESTAMP END AS t{i}"
        for i, column in enumerate(columns)
    ]
    if not columns:
        return pl.DataFrame(schema=dict.fromkeys(("column", "oldest", "newest", "newest_past"), pl.String) | {"in_future": pl.Int64})

    tomorrow = datetime.now() + timedelta(days=1)
    answer = ask(
        con,
        f"SELECT [{', '.join(measures)}] AS measures FROM (SELECT {', '.join(times)} FROM {source})",
        {"tomorrow": tomorrow},
    )
    return pl.DataFrame({"column": columns}).hstack(answer["measures"].explode().struct.unnest())


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


if __name__ == "__main__":
    app.run()
