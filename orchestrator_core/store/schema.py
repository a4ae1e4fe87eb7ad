"""Tables of the journal. The statements keep to what SQLite and PostgreSQL have in common.

`written` numbers dispatches and terminals in order of writing; accepts have `seq`. `epoch` names
the opening of the journal that wrote a row. `session` has one row per session that lives,
`pool_drain` one per pool that an operator drains, `catalog_model` one per model of the catalog,
`artifact` one per artifact.
"""

from functools import cache

SCHEMA_VERSION = 1

CREATE = (
    """
    CREATE TABLE journal (
      id INTEGER PRIMARY KEY CHECK (id = 1),
      schema_version INTEGER NOT NULL,
      journal_id TEXT NOT NULL,
      epoch BIGINT NOT NULL,
      pruned_last_ms BIGINT NOT NULL
    )
    """,
    """
    CREATE TABLE accept (
      job_id TEXT PRIMARY KEY,
      seq BIGINT NOT NULL,
      accepted_ms BIGINT NOT NULL,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL,
      payload BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE dispatch (
      job_id TEXT NOT NULL REFERENCES accept (job_id),
      attempt INTEGER NOT NULL,
      written BIGINT NOT NULL,
      sent_ms BIGINT NOT NULL,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL,
      PRIMARY KEY (job_id, attempt)
    )
    """,
    """
    CREATE TABLE terminal (
      job_id TEXT PRIMARY KEY REFERENCES accept (job_id),
      written BIGINT NOT NULL,
      ended_ms BIGINT NOT NULL,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL
    )
    """,
    "CREATE INDEX terminal_ended_ms ON terminal (ended_ms)",
)

# Made when they are missing: older journals of the same version lack them, and older orchestrators
# do not look at them.
CREATE_LATER = (
    """
    CREATE TABLE IF NOT EXISTS session (
      identity TEXT NOT NULL,
      session_id TEXT NOT NULL,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL,
      PRIMARY KEY (identity, session_id)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS pool_drain (
      pool_id TEXT PRIMARY KEY,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS artifact (
      artifact_id TEXT PRIMARY KEY,
      seq BIGINT NOT NULL,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS catalog_model (
      model_id TEXT PRIMARY KEY,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL
    )
    """,
)

INSERT_JOURNAL = (
    "INSERT INTO journal (id, schema_version, journal_id, epoch, pruned_last_ms)"
    " VALUES (1, ?, ?, 0, 0)"
)
# A newer schema may have other columns; these two it will have.
READ_SCHEMA_VERSION = "SELECT schema_version FROM journal WHERE id = 1"

RAISE_EPOCH = "UPDATE journal SET epoch = epoch + 1 WHERE id = 1"
READ_JOURNAL = "SELECT epoch, pruned_last_ms, journal_id FROM journal WHERE id = 1"


@cache
def insert_new_accepts(count: int) -> str:
    """The statement that writes so many accepts, or none when one of them is held already."""
    rows = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * count)
    into = "INSERT INTO accept (job_id, seq, accepted_ms, epoch, format, record, payload)"
    return f"{into} VALUES {rows}"


@cache
def insert_accepts(count: int) -> str:
    """The statement that writes so many accepts; those that are held already change nothing."""
    return f"{insert_new_accepts(count)} ON CONFLICT (job_id) DO NOTHING"


INSERT_DISPATCH = (
    "INSERT INTO dispatch (job_id, attempt, written, sent_ms, epoch, format, record)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id, attempt) DO NOTHING"
)
INSERT_TERMINAL = (
    "INSERT INTO terminal (job_id, written, ended_ms, epoch, format, record)"
    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (job_id) DO NOTHING"
)

PUT_SESSION = (
    "INSERT INTO session (identity, session_id, epoch, format, record) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (identity, session_id) DO UPDATE SET"
    " epoch = excluded.epoch, format = excluded.format, record = excluded.record"
)
DELETE_SESSION = "DELETE FROM session WHERE identity = ? AND session_id = ?"

PUT_DRAIN = (
    "INSERT INTO pool_drain (pool_id, epoch, format, record) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (pool_id) DO UPDATE SET"
    " epoch = excluded.epoch, format = excluded.format, record = excluded.record"
)
DELETE_DRAIN = "DELETE FROM pool_drain WHERE pool_id = ?"

PUT_ARTIFACT = (
    "INSERT INTO artifact (artifact_id, seq, epoch, format, record) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (artifact_id) DO UPDATE SET seq = excluded.seq,"
    " epoch = excluded.epoch, format = excluded.format, record = excluded.record"
)
DELETE_ARTIFACT = "DELETE FROM artifact WHERE artifact_id = ?"
PUT_MODEL = (
    "INSERT INTO catalog_model (model_id, epoch, format, record) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (model_id) DO UPDATE SET"
    " epoch = excluded.epoch, format = excluded.format, record = excluded.record"
)
DELETE_MODEL = "DELETE FROM catalog_model WHERE model_id = ?"

# The payload of an ended job is NULL: journals of earlier versions hold these, and they are large.
READ_ACCEPTS = (
    "SELECT job_id, seq, format, record,"
    " CASE WHEN EXISTS (SELECT 1 FROM terminal WHERE terminal.job_id = accept.job_id)"
    " THEN NULL ELSE payload END FROM accept ORDER BY seq"
)
READ_DISPATCHES = "SELECT job_id, written, format, record FROM dispatch ORDER BY written"
READ_TERMINALS = "SELECT job_id, written, format, record FROM terminal ORDER BY written"
READ_SESSIONS = (
    "SELECT session_id, identity, format, record FROM session ORDER BY identity, session_id"
)
READ_DRAINS = "SELECT pool_id, '', format, record FROM pool_drain ORDER BY pool_id"
READ_ARTIFACTS = "SELECT artifact_id, seq, format, record FROM artifact ORDER BY seq"
READ_MODELS = "SELECT model_id, '', format, record FROM catalog_model ORDER BY model_id"
DELETE_PAYLOAD = "UPDATE accept SET payload = ? WHERE job_id = ?"
READ_LAST_WRITTEN = (
    "SELECT max(written) FROM dispatch",
    "SELECT max(written) FROM terminal",
)

READ_LAST_EPOCH = (
    "SELECT max(epoch) FROM (SELECT max(epoch) AS epoch FROM accept"
    " UNION ALL SELECT max(epoch) FROM dispatch UNION ALL SELECT max(epoch) FROM terminal) AS rows"
)

ACCEPT_SEQ = "SELECT seq FROM accept WHERE job_id = ?"
HAS_ACCEPT = "SELECT 1 FROM accept WHERE job_id = ? AND seq = ?"
HAS_DISPATCH = "SELECT 1 FROM dispatch WHERE job_id = ? AND attempt = ?"
GET_SESSION = "SELECT record FROM session WHERE identity = ? AND session_id = ?"
GET_DRAIN = "SELECT record FROM pool_drain WHERE pool_id = ?"
GET_MODEL = "SELECT record FROM catalog_model WHERE model_id = ?"
HAS_TERMINAL = "SELECT 1 FROM terminal WHERE job_id = ?"

SELECT_ENDED = "SELECT job_id, ended_ms FROM terminal WHERE ended_ms < ? ORDER BY ended_ms LIMIT ?"
COUNT_ENDED = "SELECT count(*) FROM terminal"
SELECT_OLDEST = "SELECT job_id, ended_ms FROM terminal ORDER BY ended_ms LIMIT ?"
RAISE_PRUNED_LAST_MS = "UPDATE journal SET pruned_last_ms = ? WHERE id = 1 AND pruned_last_ms < ?"
# Children before parents, as the foreign keys demand.
DELETE_JOB = (
    "DELETE FROM dispatch WHERE job_id = ?",
    "DELETE FROM terminal WHERE job_id = ?",
    "DELETE FROM accept WHERE job_id = ?",
)
