"""MarimoHub's own tables, beside JupyterHub's in the same database.

Times are POSIX seconds (UTC) as floats: one representation that SQLite and PostgreSQL compare alike, and that a test's
clock can replace. Migrations live in `marimohub/migrations` under their own Alembic version table.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DEFAULT_WORKSPACE = "default"

_Id = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Own declarative base, so that JupyterHub's `create_all` and migrations never touch these tables."""


class Workspace(Base):
    """A set of notebooks with its own members; one exists from the first migration on."""

    __tablename__ = "marimohub_workspaces"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    created: Mapped[float] = mapped_column(Double)


class Notebook(Base):
    """What is known of one notebook file. `hash` names the accepted text; the file on disk is written from it.

    `pending` is true between the commit that accepts a text and the rename that puts it on disk: a hub that died in
    between finishes the write at its next start.
    """

    __tablename__ = "marimohub_notebooks"
    __table_args__ = (UniqueConstraint("workspace_id", "name_key"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("marimohub_workspaces.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    name_key: Mapped[str] = mapped_column(String(100))
    author: Mapped[str | None] = mapped_column(String(255))
    author_email: Mapped[str | None] = mapped_column(String(320))
    created: Mapped[float] = mapped_column(Double)
    modified: Mapped[float] = mapped_column(Double)
    hash: Mapped[str] = mapped_column(String(64))
    pending: Mapped[bool] = mapped_column(Boolean, default=False)


class Lock(Base):
    """Who may edit a notebook name. The row outlives release and deletion, so a fence is never given out twice."""

    __tablename__ = "marimohub_locks"

    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("marimohub_workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    name_key: Mapped[str] = mapped_column(String(100), primary_key=True)
    holder: Mapped[str | None] = mapped_column(String(255))
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    acquired: Mapped[float] = mapped_column(Double, default=0.0)
    heartbeat: Mapped[float] = mapped_column(Double, default=0.0)
    expires: Mapped[float] = mapped_column(Double, default=0.0)


class Content(Base):
    """A notebook's text, stored once per SHA-256 of its UTF-8 bytes."""

    __tablename__ = "marimohub_contents"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    text: Mapped[str] = mapped_column(Text)


class Version(Base):
    """One accepted text of a notebook: who, when, and by which kind of change."""

    __tablename__ = "marimohub_versions"
    __table_args__ = (
        Index("ix_marimohub_versions_notebook", "notebook_id", "id"),
        Index("ix_marimohub_versions_hash", "hash"),
        # an id is never given out twice: a page that is out of date must not act on another version or draft
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    notebook_id: Mapped[int] = mapped_column(ForeignKey("marimohub_notebooks.id", ondelete="CASCADE"))
    hash: Mapped[str] = mapped_column(ForeignKey("marimohub_contents.hash"))
    author: Mapped[str | None] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(20))
    created: Mapped[float] = mapped_column(Double)


class Draft(Base):
    """A text that was refused on save, kept for its author until they decide what becomes of it."""

    __tablename__ = "marimohub_drafts"
    __table_args__ = (
        Index("ix_marimohub_drafts_user", "workspace_id", "user_name"),
        Index("ix_marimohub_drafts_hash", "hash"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("marimohub_workspaces.id", ondelete="CASCADE"))
    notebook_name: Mapped[str] = mapped_column(String(100))
    user_name: Mapped[str] = mapped_column(String(255))
    hash: Mapped[str] = mapped_column(ForeignKey("marimohub_contents.hash"))
    base_hash: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(String(40))
    created: Mapped[float] = mapped_column(Double)


class Notice(Base):
    """A sentence that waits for a user until they dismiss it."""

    __tablename__ = "marimohub_notices"
    __table_args__ = (Index("ix_marimohub_notices_user", "user_name"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    user_name: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(40))
    text: Mapped[str] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Double)


class PolicyRevision(Base):
    """One text of a workspace's policy. Rows are only ever added; the one of the highest revision applies."""

    __tablename__ = "marimohub_policies"
    __table_args__ = (UniqueConstraint("workspace_id", "revision"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("marimohub_workspaces.id", ondelete="CASCADE"))
    revision: Mapped[int] = mapped_column(BigInteger)
    text: Mapped[str] = mapped_column(Text)
    author: Mapped[str] = mapped_column(String(255))
    comment: Mapped[str] = mapped_column(Text, default="")
    created: Mapped[float] = mapped_column(Double)


class UserAttribute(Base):
    """A fact about a person that the policy's rules may ask for. `value` is JSON."""

    __tablename__ = "marimohub_user_attributes"

    user_name: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(Text)
    changed: Mapped[float] = mapped_column(Double)
    changed_by: Mapped[str] = mapped_column(String(255))


class AuditEntry(Base):
    """What an administrator did to somebody else's work or account."""

    __tablename__ = "marimohub_audit"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    created: Mapped[float] = mapped_column(Double)
    actor: Mapped[str] = mapped_column(String(255))
    action: Mapped[str] = mapped_column(String(40))
    target: Mapped[str] = mapped_column(String(400))
    detail: Mapped[str] = mapped_column(Text, default="")


class SetupLink(Base):
    """The one-time link that lets the first administrator in. Only its SHA-256 is stored."""

    __tablename__ = "marimohub_setup_links"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[float] = mapped_column(Double)
    expires: Mapped[float] = mapped_column(Double)
    used: Mapped[float | None] = mapped_column(Double)
