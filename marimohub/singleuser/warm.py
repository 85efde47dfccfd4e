"""What is loaded before a server is forked.

The spawn server (or, if it was started alone, the launcher) imports MODULES once; servers, their zygotes and kernels
share that memory.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os

from marimohub.singleuser import hub_client

# Nothing here may start a thread, which a fork would lose: polars does, and numpy's OpenBLAS, so pandas and pyarrow as
# well.
MODULES = (
    "marimo",
    "duckdb",
    # the server, and what it loads when it starts to serve
    "marimo._server.start",
    "marimo._server.server_registry",
    "packaging.version",
    # a kernel, up to its first output
    "marimo._runtime.runtime",
    "marimo._runtime.kernel_lifecycle",
    "marimo._runtime.runner.hooks_lens",
    "marimo._runtime.runner.hooks_on_finish",
    "marimo._runtime.runner.hooks_post_execution",
    "marimo._runtime.runner.hooks_pre_execution",
    "marimo._runtime.runner.hooks_preparation",
    "marimo._runtime.utils.set_ui_element_request_manager",
    "marimo._data._external_storage.get_storage",
    "marimo._plugins.ui._impl.anywidget.comm_provider",
    "marimo._save.signing_policy",
    "getpass",
    "readline",
    # a cell with SQL: the tables it reads are found by its syntax tree
    "sqlglot",
    "sqlglot.dialects.duckdb",
    "sqlglot.optimizer.scope",
    # charts, as in the notebook templates
    "altair",
    # mo.md()
    "markdown.extensions.footnotes",
    "markdown.extensions.sane_lists",
    "markdown.extensions.tables",
    "markdown.extensions.toc",
    "pymdownx.arithmatex",
    "pymdownx.blocks.admonition",
    "pymdownx.blocks.caption",
    "pymdownx.blocks.details",
    "pymdownx.blocks.html",
    "pymdownx.blocks.tab",
    "pymdownx.caret",
    "pymdownx.critic",
    "pymdownx.emoji1_db",
    "pymdownx.highlight",
    "pymdownx.keys",
    "pymdownx.magiclink",
    "pymdownx.tasklist",
    "pymdownx.tilde",
)


@functools.cache
def load() -> None:
    """Import MODULES, as far as they are installed, and prepare what can be prepared for all servers. Once."""
    hub_client.load()
    from marimohub.singleuser import marimo_seam

    os.environ.update(marimo_seam.ENVIRONMENT)  # marimo reads some when it is imported
    importlib.import_module("marimohub.singleuser.launcher")
    for name in MODULES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    marimo_seam.use_own_kernels()
    marimo_seam.rehearse()
    marimo_seam.forget_configuration()
