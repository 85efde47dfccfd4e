"""Alembic's entry point: migrates MarimoHub's own tables over the connection that the caller hands in."""

from alembic import context

from marimohub.database import VERSION_TABLE
from marimohub.orm import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    transaction_per_migration=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
connection.commit()
