-- +goose Up
-- 0: the job's rows are here; 1: its archive file is written, its rows are going; 2: they are gone.
ALTER TABLE jobs ADD COLUMN archived INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_ended ON jobs (num) WHERE living = 0 AND archived < 2;
