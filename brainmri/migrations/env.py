"""Alembic's entry: `storage.Database` passes its connection; ``python -m alembic`` is for writing new revisions."""

from alembic import context

from brainmri.storage import Base

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("migrations run when brainmri.storage.Database(url) opens a database")
# render_as_batch: SQLite cannot alter a column; transactional_ddl: an upgrade happens whole or not at all there too.
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
