-- Ids are 16-byte blobs, digests 32, times Unix nanoseconds (0: none), money micro-credits. Chunks and attempts name their job by
-- its number, so that their keys are short. NULL stands for a zero id or digest and for an empty text where few rows have one.

-- +goose Up
CREATE TABLE meta (
	one         INTEGER PRIMARY KEY CHECK (one = 1),
	incarnation INTEGER NOT NULL, -- high bits of every epoch, raised by a restore
	broker_key  BLOB
);
INSERT INTO meta VALUES (1, 1, NULL);

CREATE TABLE accounts (
	id   BLOB PRIMARY KEY,
	name TEXT NOT NULL UNIQUE,
	json TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE keys (
	id      BLOB PRIMARY KEY,
	account BLOB NOT NULL,
	hash    BLOB NOT NULL UNIQUE,
	cap     INTEGER NOT NULL, -- 0: none
	spent   INTEGER NOT NULL,
	json    TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX keys_account ON keys (account);

CREATE TABLE tokens (
	hash    BLOB PRIMARY KEY,
	account BLOB NOT NULL,
	expires INTEGER NOT NULL,
	used_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE hosts (
	id      BLOB PRIMARY KEY,
	account BLOB NOT NULL,
	json    TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE sessions (
	num     INTEGER PRIMARY KEY, -- the highest of a host is its newest
	host    BLOB NOT NULL,
	session BLOB NOT NULL,
	dial    INTEGER NOT NULL,
	void    INTEGER NOT NULL,
	UNIQUE (host, session)
);

CREATE TABLE programs (
	digest BLOB PRIMARY KEY,
	json   TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE blobs (
	account BLOB NOT NULL,
	digest  BLOB NOT NULL,
	size    INTEGER NOT NULL,
	at      INTEGER NOT NULL,
	PRIMARY KEY (account, digest)
) WITHOUT ROWID;

CREATE TABLE blob_sums (
	account BLOB PRIMARY KEY,
	bytes   INTEGER NOT NULL -- a small blob counts as 4 KiB
) WITHOUT ROWID;

CREATE TABLE quotes (
	id    BLOB PRIMARY KEY,
	until INTEGER NOT NULL,
	json  TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE idem (
	account   BLOB NOT NULL,
	key       TEXT NOT NULL,
	body_hash BLOB NOT NULL,
	status    INTEGER NOT NULL,
	answer    BLOB NOT NULL,
	at        INTEGER NOT NULL,
	PRIMARY KEY (account, key)
) WITHOUT ROWID;
CREATE INDEX idem_at ON idem (at);

CREATE TABLE jobs (
	num     INTEGER PRIMARY KEY AUTOINCREMENT,
	id      BLOB NOT NULL UNIQUE,
	part    INTEGER NOT NULL,
	account BLOB NOT NULL,
	key     BLOB,
	name    TEXT NOT NULL,
	units   INTEGER NOT NULL,
	created INTEGER NOT NULL,
	state   TEXT NOT NULL,
	living  INTEGER NOT NULL,
	json    TEXT NOT NULL -- what SetJob replaces
);
CREATE UNIQUE INDEX jobs_name ON jobs (account, name) WHERE living = 1;
CREATE INDEX jobs_account ON jobs (account, id);
CREATE INDEX jobs_living ON jobs (id) WHERE living = 1;

-- A spec may be long and never changes: it stands apart from the row that is rewritten often.
CREATE TABLE job_specs (
	job  INTEGER PRIMARY KEY,
	json TEXT NOT NULL
);
CREATE TABLE job_labels (
	label TEXT NOT NULL, -- KEY=VALUE
	job   INTEGER NOT NULL,
	PRIMARY KEY (label, job)
) WITHOUT ROWID;

-- Decided units: the run-length map as last saved, and the chunks decided that it doesn't hold.
CREATE TABLE job_done (
	job  INTEGER PRIMARY KEY,
	next INTEGER NOT NULL,
	runs BLOB NOT NULL -- uvarints: gap before the run, its length; and so on
);
CREATE TABLE job_since (
	job   INTEGER NOT NULL,
	first INTEGER NOT NULL,
	count INTEGER NOT NULL,
	PRIMARY KEY (job, first)
) WITHOUT ROWID;

CREATE TABLE chunks (
	job     INTEGER NOT NULL,
	first   INTEGER NOT NULL,
	count   INTEGER NOT NULL,
	need    INTEGER NOT NULL,
	state   INTEGER NOT NULL, -- 0 open, 1 decided, 2 failed
	version INTEGER NOT NULL,
	digest  BLOB,
	body    BLOB,
	failed  INTEGER NOT NULL,
	decided INTEGER NOT NULL,
	PRIMARY KEY (job, first)
) WITHOUT ROWID;
CREATE INDEX chunks_open ON chunks (job, first) WHERE state = 0;

CREATE TABLE attempts (
	job       INTEGER NOT NULL,
	first     INTEGER NOT NULL,
	n         INTEGER NOT NULL,
	host      BLOB NOT NULL,
	owner     BLOB NOT NULL,
	grp       TEXT,
	seat      BLOB, -- what voter is while it counts, if not the owner
	voter     BLOB, -- NULL: its group may try again
	state     INTEGER NOT NULL, -- 0 leased, 1 expired, 2 reported, 3 failed, 4 void
	reason    TEXT,
	leased_at INTEGER NOT NULL,
	ended_at  INTEGER NOT NULL,
	digest    BLOB,
	body      BLOB,
	fuel      INTEGER NOT NULL,
	paid      INTEGER NOT NULL,
	PRIMARY KEY (job, first, n)
) WITHOUT ROWID;
CREATE UNIQUE INDEX attempts_voter ON attempts (job, first, voter) WHERE voter IS NOT NULL;

-- Money. A posting stands under its book; a transaction lists its legs (uvarints: leg, book; and so on).
CREATE TABLE books (
	num     INTEGER PRIMARY KEY,
	name    TEXT NOT NULL UNIQUE,
	balance INTEGER NOT NULL
);
CREATE TABLE txns (
	num  INTEGER PRIMARY KEY,
	name TEXT NOT NULL UNIQUE,
	at   INTEGER NOT NULL,
	legs BLOB NOT NULL
);
CREATE TABLE postings (
	book   INTEGER NOT NULL,
	txn    INTEGER NOT NULL,
	leg    INTEGER NOT NULL,
	amount INTEGER NOT NULL,
	PRIMARY KEY (book, txn, leg)
) WITHOUT ROWID;
CREATE VIEW ledger AS
	SELECT t.name AS txn, p.leg, b.name AS book, p.amount, t.at
	FROM postings p JOIN txns t ON t.num = p.txn JOIN books b ON b.num = p.book;

CREATE TABLE events (
	seq     INTEGER PRIMARY KEY,
	part    INTEGER NOT NULL,
	at      INTEGER NOT NULL,
	subject TEXT NOT NULL,
	account BLOB,
	actor   TEXT NOT NULL,
	what    TEXT NOT NULL,
	reason  TEXT,
	text    TEXT,
	data    TEXT
);
CREATE INDEX events_account ON events (account) WHERE account IS NOT NULL;
CREATE TABLE event_names ( -- every id that an event names
	name TEXT NOT NULL,
	seq  INTEGER NOT NULL,
	PRIMARY KEY (name, seq)
) WITHOUT ROWID;

-- Outcomes' bodies, found by the first eight bytes of their digest. data NULL: the job's log has it, at off.
CREATE TABLE bodies (
	num    INTEGER PRIMARY KEY,
	job    INTEGER NOT NULL,
	mark   INTEGER NOT NULL,
	digest BLOB NOT NULL,
	size   INTEGER NOT NULL, -- of the body
	codec  INTEGER NOT NULL, -- 0 as it is, 1 zstd
	off    INTEGER NOT NULL,
	stored INTEGER NOT NULL, -- bytes, encoded
	data   BLOB
);
CREATE INDEX bodies_mark ON bodies (job, mark);
