-- +goose Up
ALTER TABLE attempts ADD COLUMN lineage INTEGER NOT NULL DEFAULT 0; -- the attempt from whose start on it went on; 0: its own

-- The newest checkpoint of each lineage of an open chunk; its bytes are a file in states/, named by all of this.
CREATE TABLE states (
	job     INTEGER NOT NULL,
	first   INTEGER NOT NULL,
	lineage INTEGER NOT NULL,
	n       INTEGER NOT NULL, -- the attempt that left it
	seq     INTEGER NOT NULL,
	root    BLOB NOT NULL,
	size    INTEGER NOT NULL,
	fuel    INTEGER NOT NULL,
	at      INTEGER NOT NULL,
	PRIMARY KEY (job, first, lineage)
) WITHOUT ROWID;

CREATE INDEX blobs_digest ON blobs (digest);

-- Verdicts that rest on a convicted host's word are to be taken back: of these jobs, of these hosts.
CREATE TABLE revisits (
	job  INTEGER NOT NULL,
	host BLOB NOT NULL,
	PRIMARY KEY (job, host)
) WITHOUT ROWID;
