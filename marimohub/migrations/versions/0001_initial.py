"""The first schema: workspaces, notebooks, locks, versions, drafts, notices, audit, set-up links."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    workspaces = op.create_table(
        "marimohub_workspaces",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", sa.String(100), nullable=False, unique=True),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.bulk_insert(workspaces, [{"id": 1, "name": "default", "created": time.time()}])
    if op.get_bind().dialect.name == "postgresql":
        # the row above named its id, so the sequence has not moved
        op.execute("SELECT setval(pg_get_serial_sequence('marimohub_workspaces', 'id'), 1)")
    op.create_table(
        "marimohub_contents",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "marimohub_notebooks",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("workspace_id", _ID, sa.ForeignKey("marimohub_workspaces.id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("name_key", sa.String(100), nullable=False),
        sa.Column("author", sa.String(255)),
        sa.Column("author_email", sa.String(320)),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("modified", sa.Double, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("pending", sa.Boolean, nullable=False),
        sa.UniqueConstraint("workspace_id", "name_key"),
    )
    op.create_table(
        "marimohub_locks",
        sa.Column(
            "workspace_id",
            _ID,
            sa.ForeignKey("marimohub_workspaces.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("name_key", sa.String(100), primary_key=True),
        sa.Column("holder", sa.String(255)),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("acquired", sa.Double, nullable=False),
        sa.Column("heartbeat", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
    )
    op.create_table(
        "marimohub_versions",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("notebook_id", _ID, sa.ForeignKey("marimohub_notebooks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("hash", sa.String(64), sa.ForeignKey("marimohub_contents.hash"), nullable=False),
        sa.Column("author", sa.String(255)),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_marimohub_versions_notebook", "marimohub_versions", ["notebook_id", "id"])
    op.create_index("ix_marimohub_versions_hash", "marimohub_versions", ["hash"])
    op.create_table(
        "marimohub_drafts",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("workspace_id", _ID, sa.ForeignKey("marimohub_workspaces.id", ondelete="CASCADE"), nullable=False),
        sa.Column("notebook_name", sa.String(100), nullable=False),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("hash", sa.String(64), sa.ForeignKey("marimohub_contents.hash"), nullable=False),
        sa.Column("base_hash", sa.String(64)),
        sa.Column("reason", sa.String(40), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_marimohub_drafts_user", "marimohub_drafts", ["workspace_id", "user_name"])
    op.create_index("ix_marimohub_drafts_hash", "marimohub_drafts", ["hash"])
    op.create_table(
        "marimohub_notices",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_index("ix_marimohub_notices_user", "marimohub_notices", ["user_name"])
    op.create_table(
        "marimohub_audit",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("target", sa.String(400), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_table(
        "marimohub_setup_links",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.Column("used", sa.Double),
    )


def downgrade() -> None:
    for table in (
        "setup_links",
        "audit",
        "notices",
        "drafts",
        "versions",
        "locks",
        "notebooks",
        "contents",
        "workspaces",
    ):
        op.drop_table(f"marimohub_{table}")
